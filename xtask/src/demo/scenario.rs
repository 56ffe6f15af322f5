//! The command under audit: starts upstream, server, agent and load, each as a process of its own,
//! kills the agent halfway and starts it again, and when everything is at rest says what the
//! program's own counters are.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::scrape::{counter, get};
use super::{AT_REST, HALFWAY, HOST, LISTENING, PROGRESS};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the built binaries are.
    #[arg(long)]
    binaries: PathBuf,
    /// Uses the proxy that forgets upstream sockets instead of server and agent.
    #[arg(long)]
    leaky: bool,
}

const AGENT: &str = "demo";
/// How long the agent stays away.
const AWAY: Duration = Duration::from_millis(300);
/// Everything that was going to be released has been.
const REST: Duration = Duration::from_millis(300);
/// Where the programs take the shared token from.
const TOKEN: &str = "TUNNEL_TOKEN";

/// A process of the scenario, killed when dropped.
struct Process {
    name: &'static str,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        // A group of its own: each is ended by the scenario, in order, and not by the signal that
        // ends the scenario.
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let stdout = child.stdout.take().context("a pipe was asked for")?;
        Ok(Self {
            name,
            child,
            stdout: BufReader::new(stdout),
        })
    }

    fn line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let length = self.stdout.read_line(&mut line)?;
        Ok((length > 0).then(|| line.trim_end().to_owned()))
    }

    /// Waits until it says where it listens as `name`.
    fn listening(&mut self, name: &str) -> Result<SocketAddr> {
        let wanted = format!("{LISTENING}{name}=");
        while let Some(line) = self.line()? {
            if let Some(address) = line.strip_prefix(&wanted) {
                return Ok(address.parse()?);
            }
        }
        anyhow::bail!("the {} ended before it listened", self.name)
    }

    fn terminate(mut self) -> Result<()> {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "the {} ended with {status}", self.name);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program that serves visitors, and what it needs.
struct Service {
    /// Server and agent, or the leaky proxy alone.
    processes: Vec<Process>,
    front: SocketAddr,
    forward: SocketAddr,
    metrics: SocketAddr,
}

/// Runs the scenario until it is told to end (SIGTERM).
pub(crate) fn run(args: &Args) -> Result<()> {
    let own = std::env::current_exe()?;
    let mut upstream = Process::start("upstream", Command::new(&own).arg("__upstream"))?;
    let target = upstream.listening("upstream")?;
    let mut service = if args.leaky {
        leaky(&args.binaries, target)?
    } else {
        tunnel(&args.binaries, target)?
    };
    load(args, &own, target, &mut service)?;
    std::thread::sleep(REST);
    println!("{AT_REST}{}", rest(target, service.metrics)?);
    wait_for_the_end()?;
    for process in service.processes.into_iter().rev() {
        process.terminate()?;
    }
    upstream.terminate()
}

fn tunnel(binaries: &Path, target: SocketAddr) -> Result<Service> {
    let mut server = Process::start(
        "server",
        Command::new(binaries.join("tunnel"))
            .args([
                "server",
                "--listen",
                "127.0.0.1:0",
                "--http",
                "listen",
                "--http-host",
                HOST,
                "--admin",
                "127.0.0.1:0",
                "--compat-metrics",
                "remotedialer",
            ])
            .arg("--forward")
            .arg(format!("127.0.0.1:0={AGENT}/tcp/{target}"))
            .env(TOKEN, token()),
    )?;
    let front = server.listening("front")?;
    let forward = server.listening("forward")?;
    let metrics = server.listening("admin")?;
    let agent = agent(binaries, front, target)?;
    wait_until_served(front, target)?;
    Ok(Service {
        processes: vec![server, agent],
        front,
        forward,
        metrics,
    })
}

fn agent(binaries: &Path, server: SocketAddr, target: SocketAddr) -> Result<Process> {
    Process::start(
        "agent",
        Command::new(binaries.join("tunnel"))
            .args(["agent", "--name", AGENT, "--server"])
            .arg(format!("ws://{server}/connect"))
            .arg("--allow")
            .arg(target.to_string())
            .env(TOKEN, token()),
    )
}

fn leaky(binaries: &Path, target: SocketAddr) -> Result<Service> {
    let mut proxy = Process::start(
        "leaky proxy",
        Command::new(binaries.join("examples/leaky"))
            .args([
                "--listen",
                "127.0.0.1:0",
                "--metrics",
                "127.0.0.1:0",
                "--forward",
            ])
            .arg(format!("127.0.0.1:0={target}")),
    )?;
    Ok(Service {
        front: proxy.listening("front")?,
        forward: proxy.listening("forward")?,
        metrics: proxy.listening("metrics")?,
        processes: vec![proxy],
    })
}

/// The processes of one run share it, and nobody else can know it.
fn token() -> String {
    format!("demo-{}", std::process::id())
}

fn wait_until_served(front: SocketAddr, target: SocketAddr) -> Result<()> {
    let path = format!("/client/{AGENT}/http/{target}/");
    for _ in 0..100 {
        if get(front, &path).is_ok_and(|answer| answer.contains("private service")) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("the agent did not connect within 5 s")
}

/// Sends the load and kills the agent in the middle of it.
fn load(args: &Args, own: &Path, target: SocketAddr, service: &mut Service) -> Result<()> {
    let front = format!("{}/client/{AGENT}/http/{target}", service.front);
    let mut load = Process::start(
        "load",
        Command::new(own)
            .args(["__load", "--front", &front, "--forward"])
            .arg(service.forward.to_string()),
    )?;
    while let Some(line) = load.line()? {
        if line.starts_with(PROGRESS) {
            println!("{line}");
        } else if line == HALFWAY && !args.leaky {
            let killed = service.processes.pop();
            std::thread::sleep(AWAY / 3);
            drop(killed);
            println!("the agent was killed (SIGKILL) and comes back");
            std::thread::sleep(AWAY);
            service
                .processes
                .push(agent(&args.binaries, service.front, target)?);
        }
    }
    let status = load.child.wait()?;
    ensure!(status.success(), "the load ended with {status}");
    Ok(())
}

/// What the program under audit believes, when all is at rest.
fn rest(target: SocketAddr, metrics: SocketAddr) -> Result<Value> {
    let text = get(metrics, "/metrics")?;
    Ok(json!({
        "target": target.to_string(),
        "added": counter(&text, "session_server_total_add_connections"),
        "removed": counter(&text, "session_server_total_remove_connections"),
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn wait_for_the_end() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    terminate.recv().await;
    Ok(())
}
