//! `cargo xtask test`: every test, those that need root and eBPF included when root.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::shell::cargo;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fails when a test that needs privileges cannot run, instead of skipping it. Set in CI.
    #[arg(long, env = "CI", value_parser = clap::builder::FalseyValueParser::new())]
    strict: bool,
    /// Passed on to `cargo test`, such as a test's name.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Tells the privileged tests that they may not be skipped.
const STRICT: &str = "WATERTIGHT_TEST_STRICT";

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut command: Command = cargo();
    command.args(["test", "--workspace", "--locked", "--all-features"]);
    if !args.rest.is_empty() {
        command.arg("--").args(&args.rest);
    }
    if args.strict {
        command.env(STRICT, "1");
    }
    let status = command.status().context("cannot run cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
