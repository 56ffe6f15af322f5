//! `cargo xtask bench`: figures. The tracer's cost is a ratio to doing without, interleaved in one
//! run; medians.

mod guard;
pub(crate) mod held;
pub(crate) mod load;
mod tracer;
mod verdict;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Result, ensure};
use rustix::time::{ClockId, clock_gettime};

use crate::shell::{self, cargo, target};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// The tracer's cost: CPU time of a load of short connections, traced and not.
    Tracer(tracer::Args),
    /// The memory and CPU time of a guard over a long load.
    Guard(guard::Args),
    /// How long a verdict takes on many open sockets, leaked and innocent, and the memory it takes.
    Verdict(verdict::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Tracer(args) => tracer::run(args),
        What::Guard(args) => guard::run(args),
        What::Verdict(args) => verdict::run(args),
    }
}

/// Builds the tracer that is measured.
fn build() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this loads eBPF programs and needs root: sudo -E env PATH=\"$PATH\" cargo xtask bench ..."
    );
    shell::run(cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "tracer-user",
        "--bins",
    ]))
}

fn release_tracer() -> Command {
    Command::new(target().join("release/tracer"))
}

/// The kernel's clock that starts with it, in nanoseconds: every process reads the same.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

fn median(figures: Vec<f64>) -> f64 {
    let [_, median, _] = quartiles(figures);
    median
}

/// Returns the figures below which a quarter, half and three quarters of them lie.
fn quartiles(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    [1, 2, 3].map(|n| {
        let at = figures.len() * n / 4;
        figures.get(at).copied().unwrap_or(f64::NAN)
    })
}

/// Names the machine: a figure without it says nothing.
fn machine() -> Result<String> {
    let cpus = std::fs::read_to_string(Path::new("/proc/cpuinfo"))?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |rest| {
            rest.trim_start_matches([' ', '\t', ':'])
        });
    let release = rustix::system::uname();
    Ok(format!(
        "{} x {model}, Linux {}",
        thread::available_parallelism()?,
        release.release().to_string_lossy()
    ))
}
