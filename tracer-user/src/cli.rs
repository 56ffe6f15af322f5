//! The command line interface of `tracer`.

mod args;

use std::fmt::Display;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use tracer_core::report::Report;
use tracer_core::verdict::Verdict;

use crate::audit::{self, Audit};
use crate::metrics::Endpoint;
use crate::report::file::write_file;
use crate::report::{json, text};
use crate::selftest::probe_child;
use crate::{doctor, exec, run};
use args::{Cli, Command, RunArgs};

const USAGE: u8 = 2;
const LEAK: u8 = 3;
const INCONCLUSIVE: u8 = 4;
const CANNOT_TRACE: u8 = 5;
/// The status of a shell for a command that cannot be run.
const CANNOT_RUN: u8 = 127;

/// Runs the command and returns its exit status.
pub fn main() -> ExitCode {
    log::set_logger(&StderrLog)
        .map(|()| log::set_max_level(log::LevelFilter::Warn))
        .ok();
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli.command {
        Command::Run(args) => {
            let matches = matches.subcommand_matches("run").unwrap_or(&matches);
            run_command(args, matches)
        }
        Command::Doctor => {
            let checks = doctor::examine();
            anstream::print!("{}", doctor::render(&checks));
            if doctor::passed(&checks) {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(CANNOT_TRACE)
            }
        }
        Command::Enter { cgroup, command } => {
            print_error(format!("{:#}", exec::exec_in_cgroup(&cgroup, &command)));
            ExitCode::from(CANNOT_RUN)
        }
        Command::SelfTest { cgroup } => match probe_child::run(&cgroup) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print_error(format!("self-test: {error:#}"));
                ExitCode::FAILURE
            }
        },
    }
}

fn run_command(args: RunArgs, matches: &ArgMatches) -> ExitCode {
    let checked = args.check();
    let settings = args.audit_settings(matches);
    match checked.and_then(|()| run_audit(&settings, args)) {
        Ok(code) => code,
        Err(error) => {
            print_error(format!("{error:#}"));
            ExitCode::from(USAGE)
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run_audit(settings: &audit::Settings, args: RunArgs) -> Result<ExitCode> {
    // Signals are caught before there is anything to clean up.
    let mut signals = run::Signals::new()?;
    let mut audit = match Audit::start(settings) {
        Ok(audit) => audit,
        Err(error) => {
            print_error(doctor::explain(&error));
            return Ok(ExitCode::from(CANNOT_TRACE));
        }
    };
    if signals.any_received().await {
        print_error("ended by a signal before the command was started: there is no verdict");
        return Ok(ExitCode::from(INCONCLUSIVE));
    }
    let mut endpoint = match args.listen {
        Some(address) => Some(Endpoint::listen(address).await?),
        None => None,
    };
    if let Some(endpoint) = &endpoint {
        anstream::eprintln!("metrics    http://{}/metrics", endpoint.address());
    }
    let settings = run::Settings {
        command: args.command,
        window: args.window,
        grace: args.grace,
    };
    let (audit_log, command) =
        run::run(&mut audit, &settings, endpoint.as_mut(), &mut signals).await?;
    let report = Report::new(&audit_log, audit.ledger());
    // Before the command is ended, which may take a while.
    let written = args.json.as_ref().map_or(Ok(()), |path| {
        write_file(path, |to| json::write(&report, to))
            .with_context(|| format!("cannot write the report {}", path.display()))
    });
    command.end(&audit, &mut signals).await;
    anstream::eprint!("{}", text::render(&report));
    written?;
    Ok(match report.verdict {
        Verdict::Clean => {
            let status = audit_log.target.exit_status.unwrap_or(0);
            ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
        }
        Verdict::Leak => ExitCode::from(LEAK),
        Verdict::Inconclusive => ExitCode::from(INCONCLUSIVE),
    })
}

fn print_error(message: impl Display) {
    const BAD: Style = AnsiColor::Red.on_default().bold();
    anstream::eprintln!("{BAD}tracer{BAD:#} {message}");
}

/// Prints what the audit and the eBPF programs log.
struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            print_error(record.args());
        }
    }

    fn flush(&self) {}
}
