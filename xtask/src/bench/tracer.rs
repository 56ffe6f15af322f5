//! The tracer's cost, as a ratio to doing without.

use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::guard::{Beside, Guarded};
use super::{median, quartiles};
use crate::shell;

/// A tracer that starts late would look cheap.
const PEER_START: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Rounds; in each every contestant runs once, between two runs without it.
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Connections a run.
    #[arg(long, default_value_t = 5_000)]
    connections: u32,
    /// Other cgroups beside, with a process in each.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    cgroups: u32,
    /// Another tracer to run beside, such as libbpf-tools' tcplife; it must trace until SIGTERM.
    #[arg(long, value_name = "PROGRAM")]
    peer: Option<String>,
}

/// What watches the load, and what the load does.
#[derive(Clone, Copy, Debug)]
enum Contestant {
    Tracer,
    TracerAnnotating,
    Guard,
    Peer,
}

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Self::Tracer => "tracer run",
            Self::TracerAnnotating => "tracer run, annotating",
            Self::Guard => "tracer attach, guarding",
            Self::Peer => "peer",
        }
    }
}

/// One contestant's runs: microseconds of CPU a connection.
struct Row {
    contestant: Contestant,
    /// The mean of the runs before and after.
    untraced: Vec<f64>,
    traced: Vec<f64>,
}

impl Row {
    fn new(contestant: Contestant) -> Self {
        Self {
            contestant,
            untraced: Vec::new(),
            traced: Vec::new(),
        }
    }

    /// Runs the load traced, between two runs that are not: the machine's speed drifts within
    /// seconds.
    fn run(&mut self, args: &Args) -> Result<()> {
        let before = untraced(self.contestant, args)?;
        let traced = traced(self.contestant, args)?;
        let after = untraced(self.contestant, args)?;
        self.untraced.push(f64::midpoint(before, after));
        self.traced.push(traced);
        Ok(())
    }

    fn print(&self) {
        let ratios = self
            .traced
            .iter()
            .zip(&self.untraced)
            .map(|(traced, untraced)| traced / untraced)
            .collect();
        let [low, ratio, high] = quartiles(ratios);
        println!(
            "{:<24}{:>12.1}{:>12.1}{ratio:>10.3}   {low:.3} to {high:.3}",
            self.contestant.name(),
            median(self.untraced.clone()),
            median(self.traced.clone()),
        );
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    super::build()?;
    let mut rows = vec![
        Row::new(Contestant::Tracer),
        Row::new(Contestant::TracerAnnotating),
        Row::new(Contestant::Guard),
    ];
    if args.peer.is_some() {
        rows.push(Row::new(Contestant::Peer));
    }
    println!("{}", super::machine()?);
    let _beside = Beside::start(args.cgroups)?;
    for round in 1..=args.rounds {
        for row in &mut rows {
            row.run(args)?;
        }
        println!("round {round} of {}", args.rounds);
    }
    println!(
        "{:<24}{:>12}{:>12}{:>10}   its middle half",
        "µs a connection", "untraced", "traced", "ratio"
    );
    for row in &rows {
        row.print();
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the CPU time a connection, in microseconds, of the contestant's load when nobody watches
/// it.
fn untraced(contestant: Contestant, args: &Args) -> Result<f64> {
    measure(Command::new(std::env::current_exe()?), contestant, args)
}

/// The same when the contestant does.
fn traced(contestant: Contestant, args: &Args) -> Result<f64> {
    match contestant {
        Contestant::Tracer | Contestant::TracerAnnotating => {
            let mut command = super::release_tracer();
            command.args(["run", "--"]).arg(std::env::current_exe()?);
            measure(command, contestant, args)
        }
        Contestant::Guard => {
            let guarded = Guarded::start()?;
            measure(guarded.command()?, contestant, args)
        }
        Contestant::Peer => {
            let _peer = Peer::start(args.peer.as_deref().unwrap_or_default())?;
            untraced(contestant, args)
        }
    }
}

/// Lets `command` run the load, which prints its own CPU time.
fn measure(mut command: Command, contestant: Contestant, args: &Args) -> Result<f64> {
    command.args(["__connections", "--connections"]);
    command.arg(args.connections.to_string());
    if matches!(contestant, Contestant::TracerAnnotating) {
        command.arg("--annotate");
    }
    let cpu_ns: f64 = shell::read(&mut command)?.trim().parse()?;
    Ok(cpu_ns / 1000.0 / f64::from(args.connections))
}

/// The other tracer, ended when dropped.
struct Peer(Child);

impl Peer {
    fn start(program: &str) -> Result<Self> {
        let child = Command::new(program)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut peer = Self(child);
        thread::sleep(PEER_START);
        ensure!(
            peer.0.try_wait()?.is_none(),
            "{program} ended at once: it may need tracefs, as in `unshare --mount` after `mount -t tracefs tracefs /sys/kernel/tracing`"
        );
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}
