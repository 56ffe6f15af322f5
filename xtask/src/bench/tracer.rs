//! The tracer's cost, as a ratio to doing without.

use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::median;
use crate::shell;

/// A tracer that starts late would look cheap.
const PEER_START: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Rounds; each runs every contestant once.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Connections a run.
    #[arg(long, default_value_t = 20_000)]
    connections: u32,
    /// Another tracer to run beside, such as libbpf-tools' tcplife; it must trace until SIGTERM.
    #[arg(long, value_name = "PROGRAM")]
    peer: Option<String>,
}

/// The contestants of one round, in an order that rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contestant {
    Untraced,
    Traced,
    UntracedAnnotated,
    TracedAnnotated,
    Peer,
}

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Traced => "tracer run",
            Self::UntracedAnnotated => "untraced, annotating",
            Self::TracedAnnotated => "tracer run, annotating",
            Self::Peer => "peer",
        }
    }

    /// What it is compared with.
    fn base(self) -> Self {
        match self {
            Self::Untraced | Self::Traced | Self::Peer => Self::Untraced,
            Self::UntracedAnnotated | Self::TracedAnnotated => Self::UntracedAnnotated,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    super::build()?;
    let mut contestants = vec![
        Contestant::Untraced,
        Contestant::Traced,
        Contestant::UntracedAnnotated,
        Contestant::TracedAnnotated,
    ];
    if args.peer.is_some() {
        contestants.push(Contestant::Peer);
    }
    println!("{}", super::machine()?);
    let mut rows: Vec<(Contestant, Vec<f64>)> = contestants
        .iter()
        .map(|contestant| (*contestant, Vec::new()))
        .collect();
    for round in 0..args.rounds {
        contestants.rotate_left(usize::from(round > 0));
        for contestant in &contestants {
            let cpu = measure(*contestant, args)?;
            if let Some((_, figures)) = rows.iter_mut().find(|(row, _)| row == contestant) {
                figures.push(cpu);
            }
        }
        println!("round {} of {}", round + 1, args.rounds);
    }
    report(&rows);
    Ok(ExitCode::SUCCESS)
}

fn report(rows: &[(Contestant, Vec<f64>)]) {
    println!(
        "{:<26}{:>16}{:>16}",
        "", "µs a connection", "ratio (median)"
    );
    for (contestant, figures) in rows {
        let base = rows
            .iter()
            .find(|(row, _)| *row == contestant.base())
            .map_or(&[][..], |(_, figures)| figures);
        // Round by round: the machine's speed drifts.
        let ratios = figures
            .iter()
            .zip(base)
            .map(|(cpu, base)| cpu / base)
            .collect();
        println!(
            "{:<26}{:>16.1}{:>16.3}",
            contestant.name(),
            median(figures.clone()),
            median(ratios)
        );
    }
}

/// Returns the load's CPU time in microseconds a connection.
fn measure(contestant: Contestant, args: &Args) -> Result<f64> {
    let connections = args.connections.to_string();
    let mut load = vec!["__connections", "--connections", &connections];
    let annotating = matches!(
        contestant,
        Contestant::UntracedAnnotated | Contestant::TracedAnnotated
    );
    if annotating {
        load.push("--annotate");
    }
    let own = std::env::current_exe()?;
    let printed = match contestant {
        Contestant::Untraced | Contestant::UntracedAnnotated => {
            shell::read(Command::new(own).args(load))?
        }
        Contestant::Traced | Contestant::TracedAnnotated => {
            shell::read(super::tracer().args(["run", "--"]).arg(own).args(load))?
        }
        Contestant::Peer => {
            let _peer = Peer::start(args.peer.as_deref().unwrap_or_default())?;
            shell::read(Command::new(own).args(load))?
        }
    };
    let cpu_ns: f64 = printed.trim().parse()?;
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
