//! `cargo xtask run -- --story`: a control plane that nobody annotated, twice under the tracer.
//! With an HTTP client for each request it must be convicted, and with one client for all of them
//! it must be acquitted.

mod audit;
mod judge;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use serde_json::Value;

use crate::demo::upstream;
use crate::shell::{self, cargo, target};

/// The program. Its source is `xtask/examples/aggregator.rs`.
const PROGRAM: &str = "aggregator";
/// Requests of one round.
const REQUESTS: usize = 20;

/// How the program chooses its HTTP client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    /// A new one for each request: the leak.
    Each,
    /// One for all requests.
    One,
}

impl Clients {
    const fn name(self) -> &'static str {
        match self {
            Self::Each => "a client for each request",
            Self::One => "one client for all requests",
        }
    }

    fn report(self) -> PathBuf {
        target().join(match self {
            Self::Each => "story-client-for-each.json",
            Self::One => "story-one-client.json",
        })
    }
}

/// What became of one audit.
#[derive(Debug)]
struct Outcome {
    clients: Clients,
    rounds: usize,
    /// What the program believes.
    counters: Counters,
    /// The exit status of the tracer.
    status: Option<i32>,
    report: Value,
}

/// The program's own counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    added: u64,
    removed: u64,
}

/// Runs the story. The tracer must have been built.
pub(super) fn run() -> Result<ExitCode> {
    shell::run(cargo().args([
        "build",
        "--locked",
        "--package",
        "xtask",
        "--example",
        PROGRAM,
    ]))?;
    let began = Instant::now();
    let api = upstream::spawn()?;
    let leaking = audit::run(Clients::Each, api, None)?;
    let right = audit::run(Clients::One, api, Some(leaking.rounds))?;
    anstream::print!("{}", table::render(&leaking, &right, &api.to_string()));
    let mut code = ExitCode::SUCCESS;
    for (outcome, judged) in [
        (&leaking, judge::leaking(&leaking, &api.to_string())),
        (&right, judge::right(&right, &api.to_string())),
    ] {
        println!("report     {}", outcome.clients.report().display());
        if let Err(error) = judged {
            eprintln!("wrong      {}: {error:#}", outcome.clients.name());
            code = ExitCode::FAILURE;
        }
    }
    println!("took       {:.1} s", began.elapsed().as_secs_f32());
    Ok(code)
}
