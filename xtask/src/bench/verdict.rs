//! How long a verdict takes on many open sockets, and the memory that it takes.

use std::io::Read;
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{held, median};
use crate::shell::target;

/// How often the tracer's peak memory is read: the kernel has it for a living process only.
const LOOK: Duration = Duration::from_millis(2);
/// The exit status for a leak.
const LEAK: i32 = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Rounds; each has one run with leaked sockets and one with innocent ones.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Open sockets, two to a connection.
    #[arg(long, default_value_t = 100_000)]
    sockets: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Every socket outlives its request.
    Leaked,
    /// Every socket serves a request that goes on.
    Innocent,
}

/// What one run took.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Seconds from the end, when the command is over and the grace too, to the tracer's exit
    /// status.
    exit: f64,
    /// Megabytes of the tracer's memory at its peak.
    peak: f64,
    /// Megabytes of the report.
    report: f64,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    super::build()?;
    println!("{}", super::machine()?);
    println!(
        "{:<10}{:>10}{:>10}{:>22}{:>16}{:>16}",
        "", "sockets", "findings", "s from end to exit", "peak memory MB", "report MB"
    );
    for case in [Case::Leaked, Case::Innocent] {
        let mut rows = Vec::new();
        for _ in 0..args.rounds {
            rows.push(measure(case, args.sockets / 2)?);
        }
        let of = |field: fn(&Figures) -> f64| {
            let figures: Vec<f64> = rows.iter().map(field).collect();
            let most = figures.iter().copied().fold(0.0, f64::max);
            (median(figures), most)
        };
        let (exit, exit_most) = of(|row| row.exit);
        let (peak, peak_most) = of(|row| row.peak);
        let (report, _) = of(|row| row.report);
        println!(
            "{:<10}{:>10}{:>10}{:>22}{:>16}{report:>16.1}",
            match case {
                Case::Leaked => "leaked",
                Case::Innocent => "innocent",
            },
            args.sockets / 2 * 2,
            findings(case, args.sockets / 2),
            format!("{exit:.2} (max {exit_most:.2})"),
            format!("{peak:.0} (max {peak_most:.0})"),
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn findings(case: Case, connections: u32) -> usize {
    match case {
        Case::Leaked => connections as usize * 2,
        Case::Innocent => 0,
    }
}

fn measure(case: Case, connections: u32) -> Result<Figures> {
    let report = target().join("bench-verdict.json");
    let mut command = super::release_tracer();
    command.args(["run", "--json"]).arg(&report).arg("--");
    command.arg(std::env::current_exe()?).arg(held::COMMAND);
    command.args(["--connections", &connections.to_string()]);
    if case == Case::Leaked {
        command.arg("--leaky");
    }
    let mut tracer = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // The holders end when it does.
    let stdin = tracer.stdin.take();
    let (status, peak) = watched(&mut tracer)?;
    let exit_ns = super::now_ns();
    drop(stdin);
    let wanted = match case {
        Case::Leaked => LEAK,
        Case::Innocent => 0,
    };
    ensure!(status == Some(wanted), "the tracer ended with {status:?}");
    let mut told = String::new();
    let mut stdout = tracer.stdout.take().context("the tracer has no output")?;
    stdout.read_to_string(&mut told)?;
    let ended_ns: u64 = told.trim().parse()?;
    let (grace_ns, length) = examine(&report, findings(case, connections))?;
    std::fs::remove_file(&report)?;
    let late_ns = exit_ns.saturating_sub(ended_ns.saturating_add(grace_ns));
    Ok(Figures {
        exit: Duration::from_nanos(late_ns).as_secs_f64(),
        peak,
        report: length,
    })
}

/// Waits for the tracer's end and returns its exit status and its peak memory in megabytes.
fn watched(tracer: &mut Child) -> Result<(Option<i32>, f64)> {
    let status_file = format!("/proc/{}/status", tracer.id());
    let mut peak_kib = 0.0;
    loop {
        if let Some(status) = tracer.try_wait()? {
            return Ok((status.code(), peak_kib * 1024.0 / 1e6));
        }
        let text = std::fs::read_to_string(&status_file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kib) = line.and_then(|rest| rest.trim().strip_suffix(" kB")) {
            peak_kib = kib.parse()?;
        }
        thread::sleep(LOOK);
    }
}

/// Returns the grace in nanoseconds and the report's megabytes, when the report has every finding
/// with its holders.
fn examine(path: &Path, findings: usize) -> Result<(u64, f64)> {
    let bytes = std::fs::read(path)?;
    let report: Value = serde_json::from_slice(&bytes)?;
    let listed = report.get("findings").and_then(Value::as_array);
    let listed = listed.context("the report has no findings")?;
    let is_named = |found: &&Value| {
        found
            .pointer("/holders/0/comm")
            .is_some_and(Value::is_string)
    };
    let named = listed.iter().filter(is_named).count();
    ensure!(
        listed.len() == findings && named == findings,
        "{} findings, {named} with their holders, where there must be {findings}",
        listed.len()
    );
    let grace_ms = report.pointer("/window/grace_ms").and_then(Value::as_u64);
    let grace_ms = grace_ms.context("the report has no grace")?;
    #[expect(clippy::cast_precision_loss, reason = "one digit is printed")]
    let length = bytes.len() as f64 / 1e6;
    Ok((grace_ms * 1_000_000, length))
}
