//! The reverse tunnel: `tunnel server` on the public side, `tunnel agent` on the private side.

mod cli;
mod memory;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tunnel::agent::Agent;
use tunnel::metrics::{Compat, Metrics};
use tunnel::scope::Scope;
use tunnel::server::{Server, admin};
use tunnel::socket::Listener;

use cli::{AgentArgs, Cli, Command, LogFormat, ServerArgs};

fn main() -> ExitCode {
    memory::keep_some();
    let cli = Cli::parse();
    start_logging(cli.log_format);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A broken stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "tunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_env("TUNNEL_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        match command {
            Command::Server(args) => serve(args, &mut signals).await,
            Command::Agent(args) => connect(args, &mut signals).await,
        }
    });
    // A name that is being resolved cannot be called off; nothing else is left.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve(args: ServerArgs, signals: &mut Signals) -> anyhow::Result<()> {
    let drain = args.drain;
    let server = Server::start(args.into_config()?).await?;
    announce("front", server.front())?;
    for forward in server.forwards() {
        announce("forward", *forward)?;
    }
    if let Some(metrics) = server.metrics() {
        announce("metrics", metrics)?;
    }
    signals.next_while(server.counters()).await;
    tracing::info!(deadline = ?drain, "draining; a second signal exits at once");
    signals.or_leave_at_once(server.drain(drain)).await
}

async fn connect(args: AgentArgs, signals: &mut Signals) -> anyhow::Result<()> {
    let drain = args.drain;
    let listen = args.metrics;
    let compat = args.compat_metrics.map(Compat::from);
    let configs = args.into_configs()?;
    let metrics = Metrics::new(compat).context("cannot register the counters")?;
    let admin = Scope::new();
    if let Some(address) = listen {
        let listener = Listener::listen(address, "metrics").await?;
        announce("metrics", listener.address())?;
        admin.spawn_interruptible(admin::serve(Arc::clone(&metrics), listener, admin.handle()));
    }
    let agents: Vec<Agent> = configs
        .into_iter()
        .map(|config| Agent::start(config, Some(Arc::clone(&metrics))))
        .collect();
    signals.next_while(&metrics).await;
    tracing::info!(deadline = ?drain, "draining; a second signal exits at once");
    let ends = async {
        let draining = Scope::new();
        for agent in agents {
            draining.spawn(agent.drain(drain));
        }
        draining.join().await;
        admin.end(Duration::from_secs(1)).await;
    };
    signals.or_leave_at_once(ends).await
}

/// Tells scripts where something listens: one line on standard output.
fn announce(what: &str, address: std::net::SocketAddr) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening {what}={address}")
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the next signal while streams come and go.
    async fn next_while(&mut self, metrics: &Metrics) {
        tokio::select! {
            () = self.next() => {}
            never = memory::give_back(metrics) => match never {},
        }
    }

    /// Waits for `ends`, or for the next signal.
    async fn or_leave_at_once(&mut self, ends: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::select! {
            () = ends => Ok(()),
            () = self.next() => anyhow::bail!("left at once, without waiting for streams"),
        }
    }
}
