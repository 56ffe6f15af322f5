//! `cargo xtask bench`: figures, as ratios to doing without, interleaved in one run; medians.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use tracer_abi::annotation::{Owner, Role, bind, end};

use crate::shell::{self, cargo, target};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// The tracer's cost: CPU time of a load of short connections, traced and not.
    Tracer(TracerArgs),
}

#[derive(Debug, clap::Args)]
struct TracerArgs {
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

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LoadArgs {
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    annotate: bool,
}

/// A tracer that starts late would look cheap.
const PEER_START: Duration = Duration::from_secs(3);

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Tracer(args) => tracer(args),
    }
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

fn tracer(args: &TracerArgs) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this loads eBPF programs and needs root: sudo -E env PATH=\"$PATH\" cargo xtask bench tracer"
    );
    shell::run(cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "tracer-user",
        "--bins",
    ]))?;
    let mut contestants = vec![
        Contestant::Untraced,
        Contestant::Traced,
        Contestant::UntracedAnnotated,
        Contestant::TracedAnnotated,
    ];
    if args.peer.is_some() {
        contestants.push(Contestant::Peer);
    }
    println!("{}", machine()?);
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

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the load's CPU time in microseconds a connection.
fn measure(contestant: Contestant, args: &TracerArgs) -> Result<f64> {
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
        Contestant::Traced | Contestant::TracedAnnotated => shell::read(
            Command::new(target().join("release/tracer"))
                .args(["run", "--"])
                .arg(own)
                .args(load),
        )?,
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

/// The load: short connections on loopback, a byte each way. Prints its own CPU time in nanoseconds.
pub(crate) fn load(args: &LoadArgs) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::listen(&listener, 4096)?;
    let address = listener.local_addr()?;
    if args.annotate {
        bind(&listener, Role::Listener, owner(0), "listener")?;
    }
    let connections = args.connections;
    let server = thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..connections {
            let (mut socket, _) = listener.accept()?;
            socket.read_exact(&mut [0; 1])?;
            socket.write_all(b"y")?;
        }
        Ok(())
    });
    for n in 0..connections {
        let mut socket = TcpStream::connect(address)?;
        if args.annotate {
            bind(&socket, Role::Stream, owner(n + 1), "a short connection")?;
        }
        socket.write_all(b"x")?;
        socket.read_exact(&mut [0; 1])?;
        if args.annotate {
            end(&socket, owner(n + 1), 0)?;
        }
    }
    server
        .join()
        .map_err(|_| anyhow::anyhow!("the server's thread failed"))??;
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    println!(
        "{}",
        i128::from(cpu.tv_sec) * 1_000_000_000 + i128::from(cpu.tv_nsec)
    );
    Ok(())
}

fn owner(stream: u32) -> Owner {
    Owner {
        session: 1,
        stream: u64::from(stream),
    }
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
