//! `cargo xtask check`: what can be said of the sources without a kernel to load programs into.

mod imports;
mod miri;

use std::process::Command;

use anyhow::{Result, bail};

use crate::ebpf;
use crate::shell::{self, cargo};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fails when a check cannot run, instead of skipping it. Set in CI.
    #[arg(long, env = "CI", value_parser = clap::builder::FalseyValueParser::new())]
    strict: bool,
    /// Runs these checks only; without any, all but miri.
    #[arg(value_enum, value_name = "CHECK")]
    only: Vec<Check>,
}

/// The checks, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    /// rustfmt.
    Format,
    /// No modules import each other in a circle.
    Imports,
    /// cargo-deny: licences, sources, and crates that are not wanted.
    Dependencies,
    /// The pure cores depend on nothing that does I/O.
    Cores,
    /// clippy over the workspace, and over the tunnel with its other cryptography.
    Lints,
    /// clippy over the eBPF programs, for their own target.
    EbpfLints,
    /// rustdoc over the workspace, private items included.
    Docs,
    /// The unit tests of the pure cores under miri. It takes minutes and needs a nightly: it runs
    /// only when it is named.
    Miri,
}

impl Check {
    const ALL: [Self; 8] = [
        Self::Format,
        Self::Imports,
        Self::Dependencies,
        Self::Cores,
        Self::Lints,
        Self::EbpfLints,
        Self::Docs,
        Self::Miri,
    ];

    fn runs_unnamed(self) -> bool {
        self != Self::Miri
    }

    fn run(self) -> Result<Outcome> {
        match self {
            Self::Format => done(cargo().args(["fmt", "--all", "--check"])),
            Self::Imports => imports::run().map(|()| Outcome::Done),
            Self::Dependencies => dependencies(),
            Self::Cores => cores(),
            Self::Lints => lints(),
            Self::EbpfLints => Ok(ebpf::lint()?.map_or(Outcome::Done, Outcome::Skipped)),
            Self::Docs => docs(),
            Self::Miri => miri::run(&CORES).map(|()| Outcome::Done),
        }
    }
}

/// How a check ended that did not fail.
enum Outcome {
    Done,
    /// It could not run, for this reason.
    Skipped(&'static str),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let chosen = |check: &Check| match args.only.as_slice() {
        [] => check.runs_unnamed(),
        only => only.contains(check),
    };
    for check in Check::ALL.into_iter().filter(chosen) {
        match check.run()? {
            Outcome::Done => {}
            Outcome::Skipped(reason) if args.strict => bail!("cannot check {check:?}: {reason}"),
            Outcome::Skipped(reason) => eprintln!("skipped: {check:?}: {reason}"),
        }
    }
    Ok(())
}

fn done(command: &mut Command) -> Result<Outcome> {
    shell::run(command).map(|()| Outcome::Done)
}

/// The advisories of cargo-deny are left out: they come from a repository that is fetched each
/// time, so the same sources would pass on one day and fail on the next.
fn dependencies() -> Result<Outcome> {
    if shell::read(cargo().args(["deny", "--version"])).is_err() {
        return Ok(Outcome::Skipped(
            "cargo-deny is missing: cargo install cargo-deny --locked --version 0.20.2",
        ));
    }
    let checks = ["bans", "licenses", "sources"];
    done(
        cargo()
            .args(["deny", "--log-level", "error", "check"])
            .args(checks),
    )
}

fn lints() -> Result<Outcome> {
    clippy(&["--workspace", "--all-targets"])?;
    let ring = "--package tunnel --all-targets --no-default-features --features ring";
    clippy(&ring.split(' ').collect::<Vec<_>>())?;
    Ok(Outcome::Done)
}

/// The crates that decide, and what none of them may come to depend on.
const CORES: [&str; 2] = ["tunnel-proto", "tracer-core"];
const SHELLS: [&str; 5] = ["aya", "mio", "rustix", "socket2", "tokio"];

fn cores() -> Result<Outcome> {
    for core in CORES {
        let tree = shell::read(
            cargo()
                .args(["tree", "--locked", "--edges", "normal", "--prefix", "none"])
                .args(["--package", core]),
        )?;
        let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        if let Some(shell) = tree
            .lines()
            .map(name)
            .find(|it| SHELLS.contains(&it.as_str()))
        {
            bail!(
                "{core} is a pure core and depends on {shell}; see `cargo tree -p {core} -i {shell}`"
            );
        }
    }
    Ok(Outcome::Done)
}

fn clippy(arguments: &[&str]) -> Result<()> {
    shell::run(
        cargo()
            .args(["clippy", "--locked"])
            .args(arguments)
            .args(["--", "--deny", "warnings"]),
    )
}

fn docs() -> Result<Outcome> {
    let mut command = cargo();
    command
        .args(["doc", "--workspace", "--no-deps", "--locked"])
        .arg("--document-private-items");
    done(command.env("RUSTDOCFLAGS", "--deny warnings"))
}
