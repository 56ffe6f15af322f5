//! `cargo xtask run`: upstream, server, agent and load on one machine, each a process of its own,
//! under `tracer run`.

mod story;
mod table;

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::demo::{AT_REST, PROGRESS};
use crate::shell::{self, cargo, target};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Runs the same load through a proxy that forgets upstream sockets. The tracer must find
    /// it: exit status 3.
    #[arg(long)]
    leaky: bool,
    /// Runs a program that nobody annotated twice: with an HTTP client for each request, and with
    /// one for all. The tracer must find the pile of connections of the first and nothing in the
    /// second: exit status 0.
    #[arg(long, conflicts_with_all = ["leaky", "json"])]
    story: bool,
    /// Where the JSON report goes.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "cargo xtask run loads eBPF programs and needs root: sudo -E env PATH=\"$PATH\" cargo xtask run"
        );
        return Ok(ExitCode::from(5));
    }
    build(args.leaky)?;
    if args.story {
        return story::run();
    }
    let report = args
        .json
        .clone()
        .unwrap_or_else(|| target().join("watertight-report.json"));
    let began = Instant::now();
    let (rest, status) = audit(args, &report)?;
    if let Some(rest) = &rest
        && let Ok(text) = std::fs::read_to_string(&report)
    {
        let report: Value = serde_json::from_str(&text)?;
        anstream::print!("{}", table::render(rest, &report));
    }
    println!(
        "report     {} ({:.1} s)",
        report.display(),
        began.elapsed().as_secs_f32()
    );
    if rest.is_none() && status.success() {
        anyhow::bail!("the scenario ended before its load did; its messages are above");
    }
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}

fn build(leaky: bool) -> Result<()> {
    println!("building the tunnel and the tracer (once; a few minutes on two cores)");
    shell::run(cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "tunnel",
        "--package",
        "tracer-user",
        "--bins",
    ]))?;
    if leaky {
        shell::run(cargo().args([
            "build",
            "--release",
            "--locked",
            "--package",
            "tunnel",
            "--example",
            "leaky",
        ]))?;
    }
    Ok(())
}

/// Runs the scenario under the tracer. When everything is at rest it asks the tracer for its
/// verdict, while all of it still runs, and returns what the program under audit believed then.
fn audit(args: &Args, report: &Path) -> Result<(Option<Value>, ExitStatus)> {
    let binaries = target().join("release");
    let mut command = Command::new(binaries.join("tracer"));
    command.arg("run").arg("--json").arg(report).arg("--");
    command
        .arg(std::env::current_exe()?)
        .arg("__scenario")
        .arg("--binaries")
        .arg(&binaries);
    if args.leaky {
        command.arg("--leaky");
    }
    let mut tracer = Tracer(
        command
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the tracer")?,
    );
    let stdout = tracer.0.stdout.take().context("a pipe was asked for")?;
    let mut rest = None;
    let mut progress = Progress::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if let Some(json) = line.strip_prefix(AT_REST) {
            progress.finish();
            rest = Some(serde_json::from_str(json)?);
            println!("the load is over; asking for the verdict while everything still runs");
            tracer.interrupt()?;
        } else if let Some(counts) = line.strip_prefix(PROGRESS) {
            progress.show(counts);
        } else {
            progress.finish();
            println!("{line}");
        }
    }
    Ok((rest, tracer.0.wait()?))
}

/// The tracer's process; dropping it asks it to end and waits.
struct Tracer(Child);

impl Tracer {
    fn interrupt(&self) -> Result<()> {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::INT)?;
        }
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) && self.interrupt().is_ok() {
            let _ = self.0.wait();
        }
    }
}

/// One line that is written over on a terminal, and a line for each quarter elsewhere.
struct Progress {
    live: bool,
    shown: bool,
    last: u64,
}

impl Progress {
    fn new() -> Self {
        Self {
            live: std::io::stdout().is_terminal(),
            shown: false,
            last: 0,
        }
    }

    fn show(&mut self, counts: &str) {
        let mut numbers = counts
            .split(' ')
            .filter_map(|number| number.parse::<u64>().ok());
        let (Some(done), Some(total)) = (numbers.next(), numbers.next()) else {
            return;
        };
        if self.live {
            print!("\rrequests   {done} of {total} answered");
            let _ = std::io::stdout().flush();
            self.shown = true;
        } else if done == total || done >= self.last + total / 4 {
            self.last = done;
            println!("requests   {done} of {total} answered");
        }
    }

    fn finish(&mut self) {
        if std::mem::take(&mut self.shown) {
            println!();
        }
    }
}
