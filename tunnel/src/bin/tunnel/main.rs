//! The reverse tunnel: `tunnel server` on the public side, `tunnel agent` on the private side.

mod check;
mod cli;
mod file;
mod memory;
mod nearest;
mod open_files;
mod options;
mod run_agent;
mod run_server;
mod signals;
mod stdout;
mod token;
mod watch;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use cli::{Cli, Command, LogFormat};
use signals::Signals;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    memory::keep_some();
    let cli = Cli::read();
    start_logging(cli.log_format);
    cli::warn_of_unknown_variables();
    open_files::raise_limit();
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
    match command {
        Command::Server(args) => {
            block_on(async { run_server::run(*args, Signals::listen()?).await })
        }
        Command::Agent(args) => block_on(async { run_agent::run(*args, Signals::listen()?).await }),
        Command::Check(args) => check::check(&args.file),
        Command::Token(args) => token::token(args.file.as_deref()),
    }
}

fn block_on(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(future);
    // A file system that hangs cannot be called off; nothing else is left.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}
