//! Every chore of the workspace: `cargo xtask run | test | ebpf | check | bench`.

mod bench;
mod check;
mod demo;
mod ebpf;
mod run;
mod shell;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The chores of the Watertight workspace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Runs upstream, server, agent and a real load on this machine under the tracer and prints the
    /// verdict.
    Run(run::Args),
    /// Runs every test; as root also those that need eBPF.
    Test(test::Args),
    /// Builds the eBPF object from its sources and commits it to tracer-ebpf/prebuilt.
    Ebpf(ebpf::Args),
    /// Runs the checks that need no kernel: formatting, imports, dependencies, lints, docs.
    Check(check::Args),
    /// Measures the tracer: its cost, as a ratio to doing without, and its verdict on many open
    /// sockets.
    Bench(bench::Args),
    #[command(hide = true, name = test::RUN_BINARY)]
    TestBinary(test::BinaryArgs),
    #[command(hide = true, name = "__connections")]
    Connections(bench::load::Args),
    #[command(hide = true, name = bench::held::COMMAND)]
    Held(bench::held::Args),
    #[command(hide = true, name = bench::held::HOLDER)]
    Holder(bench::held::HolderArgs),
    #[command(hide = true, name = "__upstream")]
    Upstream,
    #[command(hide = true, name = "__load")]
    Load(demo::load::Args),
    #[command(hide = true, name = "__scenario")]
    Scenario(demo::scenario::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse_from(arguments()).chore {
        Chore::Run(args) => run::run(&args),
        Chore::Test(args) => test::run(&args),
        Chore::TestBinary(args) => test::run_binary(&args),
        Chore::Ebpf(args) => ebpf::run_ebpf(&args).map(|()| ExitCode::SUCCESS),
        Chore::Check(args) => check::run(&args).map(|()| ExitCode::SUCCESS),
        Chore::Bench(args) => bench::run(&args),
        Chore::Connections(args) => bench::load::run(&args).map(|()| ExitCode::SUCCESS),
        Chore::Held(args) => bench::held::run(&args).map(|()| ExitCode::SUCCESS),
        Chore::Holder(args) => bench::held::hold(&args).map(|()| ExitCode::SUCCESS),
        Chore::Upstream => demo::upstream::serve().map(|()| ExitCode::SUCCESS),
        Chore::Load(args) => demo::load::run(&args).map(|()| ExitCode::SUCCESS),
        Chore::Scenario(args) => demo::scenario::run(&args).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| complain(&error))
}

/// Returns the arguments, `cargo xtask run -- --leaky` being the same as without the dashes.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|chore| chore == "run")
        && arguments.get(2).is_some_and(|dashes| dashes == "--")
    {
        arguments.remove(2);
    }
    arguments
}

fn complain(error: &anyhow::Error) -> ExitCode {
    const BAD: anstyle::Style = anstyle::AnsiColor::Red.on_default().bold();
    anstream::eprintln!("{BAD}xtask{BAD:#} {error:#}");
    ExitCode::FAILURE
}
