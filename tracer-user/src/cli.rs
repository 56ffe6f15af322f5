//! The command line interface of `tracer`.

mod args;
mod exit;

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use args::{AttachArgs, AuditArgs, Cli, Command, RunArgs, TopArgs};
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use exit::{CANNOT_TRACE, FAILED, INCONCLUSIVE, USAGE};
use tracer_core::report::Report;

use crate::audit::{self, Audit, Subject};
use crate::event_loop::Signals;
use crate::exec::NotStarted;
use crate::metrics::Endpoint;
use crate::probes::pinned;
use crate::report::file::write_file;
use crate::report::{json, text};
use crate::selftest::probe_child;
use crate::top::TopError;
use crate::{attach, doctor, exec, run, thaw, top};

/// Runs the command and returns its exit status.
pub fn main() -> ExitCode {
    log::set_logger(&StderrLog)
        .map(|()| log::set_max_level(log_level()))
        .ok();
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli.command {
        Command::Run(args) => {
            let matches = matches.subcommand_matches("run").unwrap_or(&matches);
            audit_command(run_command(*args, matches))
        }
        Command::Attach(args) => {
            let matches = matches.subcommand_matches("attach").unwrap_or(&matches);
            audit_command(attach_command(*args, matches))
        }
        Command::Detach { pin } => detach(&pin),
        Command::Top(args) => audit_command(top_command(&args)),
        Command::Doctor => {
            let checks = doctor::run_checks();
            print(anstream::stdout(), doctor::render(&checks));
            if doctor::passed(&checks) {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(CANNOT_TRACE)
            }
        }
        // The tracer that started this process prints why.
        Command::Enter {
            cgroup,
            reply_fd,
            program,
            command,
        } => exec::exec_in_cgroup(&cgroup, reply_fd, &program, &command)
            .status
            .into(),
        Command::Thaw { cgroup } => match thaw::wait_and_thaw(&cgroup) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print_error(format!("cannot thaw {}: {error}", cgroup.display()));
                ExitCode::FAILURE
            }
        },
        Command::SelfTest { cgroup } => match probe_child::run(&cgroup) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print_error(format!("self-test: {error:#}"));
                ExitCode::FAILURE
            }
        },
    }
}

fn detach(pin: &Path) -> ExitCode {
    match pinned::detach(pin) {
        Ok(count) => {
            print_status(format_args!("removed    {count} pins of {}", pin.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(error);
            ExitCode::from(CANNOT_TRACE)
        }
    }
}

/// Returns the exit status of an audit, or prints why there was none.
fn audit_command(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        print_error(format!("{error:#}"));
        let not_started = error.downcast_ref::<NotStarted>();
        not_started.map_or(USAGE, |of| of.status).into()
    })
}

/// Starts an audit. Signals are caught already: from here on there is something to clean up.
///
/// # Errors
///
/// [`NotStarted`] when this machine cannot be traced on.
async fn start(
    args: &AuditArgs,
    settings: &audit::Settings,
    subject: Subject,
) -> Result<(Audit, Option<Endpoint>)> {
    let audit = Audit::start(settings, subject).map_err(|error| NotStarted {
        status: exit::of_tracer(CANNOT_TRACE, &args.exit_code),
        message: doctor::explain(&error),
    })?;
    let endpoint = match args.listen {
        Some(address) => Some(Endpoint::listen(address).await?),
        None => None,
    };
    if let Some(endpoint) = &endpoint {
        print_status(format_args!(
            "metrics    http://{}/metrics",
            endpoint.address()
        ));
    }
    Ok((audit, endpoint))
}

/// Checks that no signal came while the audit started: there is nothing to give a verdict on.
///
/// # Errors
///
/// [`NotStarted`] when one did.
async fn check_signals(args: &AuditArgs, signals: &mut Signals) -> Result<(), NotStarted> {
    if !signals.any_received().await {
        return Ok(());
    }
    Err(NotStarted {
        status: exit::of_tracer(INCONCLUSIVE, &args.exit_code),
        message: "ended by a signal before the audit began: no verdict".to_owned(),
    })
}

fn run_command(args: RunArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let name = args.command.first().map(PathBuf::from);
    let program = exit::find(&name.unwrap_or_default())?;
    args.audit.check()?;
    let settings = args.audit.audit_settings(matches);
    run_audit(&settings, program, args)
}

#[tokio::main(flavor = "current_thread")]
async fn run_audit(
    settings: &audit::Settings,
    program: PathBuf,
    args: RunArgs,
) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let (mut audit, mut endpoint) = start(&args.audit, settings, Subject::Command).await?;
    check_signals(&args.audit, &mut signals).await?;
    let settings = run::Settings {
        program,
        command: args.command,
        window: args.window,
        grace: args.audit.grace,
    };
    let (audit_log, command) =
        run::run(&mut audit, &settings, endpoint.as_mut(), &mut signals).await?;
    let report = Report::new(&audit_log, audit.ledger());
    // Before the command is ended, which may take a while.
    let written = write_json(&args.audit, &report);
    command.end(&audit, &mut signals).await;
    Ok(conclude(&args.audit, &report, written))
}

fn attach_command(args: AttachArgs, matches: &ArgMatches) -> Result<ExitCode> {
    args.audit.check()?;
    anyhow::ensure!(
        args.window.is_some() || args.audit.json.is_none(),
        "--json needs --for: a guard prints its findings as lines of JSON to the standard output"
    );
    anyhow::ensure!(
        args.window.is_some() || !args.audit.stacks,
        "--stacks needs --for: the lines of a guard have no stacks"
    );
    let subject = args.target.resolve()?;
    let settings = audit::Settings {
        is_guard: args.window.is_none(),
        pin: args.pin.clone(),
        ..args.audit.audit_settings(matches)
    };
    attach_audit(&settings, subject, args)
}

#[tokio::main(flavor = "current_thread")]
async fn attach_audit(
    settings: &audit::Settings,
    subject: Subject,
    args: AttachArgs,
) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let (mut audit, mut endpoint) = start(&args.audit, settings, subject).await?;
    let Some(window) = args.window else {
        return guard(audit, endpoint, &mut signals, settings, &args).await;
    };
    check_signals(&args.audit, &mut signals).await?;
    let grace = args.audit.grace;
    let audit_log =
        attach::judge(&mut audit, window, grace, endpoint.as_mut(), &mut signals).await?;
    let report = Report::new(&audit_log, audit.ledger());
    let written = write_json(&args.audit, &report);
    Ok(conclude(&args.audit, &report, written))
}

/// Guards until it is told to stop; what is restarted is guarded again.
async fn guard(
    mut audit: Audit,
    mut endpoint: Option<Endpoint>,
    signals: &mut Signals,
    settings: &audit::Settings,
    args: &AttachArgs,
) -> Result<ExitCode> {
    let mut was_denied = false;
    loop {
        let audited = audit.audited().display().to_string();
        print_status(format_args!("guarding   {audited}"));
        let stdout = std::io::stdout();
        let guarded = attach::guard(&mut audit, endpoint.as_mut(), signals, stdout).await?;
        was_denied |= guarded.was_denied;
        drop(audit);
        if guarded.is_stopped || !args.target.may_return() {
            break;
        }
        print_status(format_args!(
            "gone       {audited}: waiting for it to come back"
        ));
        let mut reason = String::new();
        let look = || {
            let subject = args.target.resolve().ok()?;
            let started = Audit::start(settings, subject);
            // It may be half there: say why it is not guarded, once, and look again.
            let failure = started.as_ref().err().map(doctor::explain);
            if let Some(failure) = failure.filter(|failure| *failure != reason) {
                log::warn!("{failure}");
                reason = failure;
            }
            started.ok()
        };
        match attach::wait_for(look, endpoint.as_mut(), signals).await {
            Some(again) => audit = again,
            None => break,
        }
    }
    Ok(exit::of_guard(was_denied, &args.audit.exit_code).into())
}

fn print_status(status: impl Display) {
    print(anstream::stderr(), format_args!("{status}\n"));
}

#[tokio::main(flavor = "current_thread")]
async fn top_command(args: &TopArgs) -> Result<ExitCode> {
    let settings = top::Settings {
        once: args.once,
        json: args.json,
        all: args.all,
    };
    let mut signals = Signals::new()?;
    let status = match top::run(&settings, &mut signals).await {
        Ok(()) => 0,
        // The reader has seen enough.
        Err(TopError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => 0,
        Err(TopError::Probes(error)) => {
            print_error(doctor::explain(&error.into()));
            CANNOT_TRACE
        }
        Err(error @ (TopError::Output(_) | TopError::Interrupted)) => {
            print_error(error);
            FAILED
        }
    };
    Ok(status.into())
}

/// Prints the report, and returns the exit status.
fn conclude(args: &AuditArgs, report: &Report<'_>, written: Result<()>) -> ExitCode {
    print(anstream::stderr(), text::render(report));
    if let Err(error) = &written {
        print_error(format!("{error:#}"));
    }
    let own = report.audit_log.target.exit_status;
    exit::of_verdict(report.verdict, own, written.is_ok(), &args.exit_code).into()
}

/// Writes the JSON report, if one is wanted.
fn write_json(args: &AuditArgs, report: &Report<'_>) -> Result<()> {
    args.json.as_ref().map_or(Ok(()), |path| {
        write_report(path, report)
            .with_context(|| format!("cannot write the report {}", path.display()))
    })
}

/// Writes the report to a file, or to the standard output for `-`.
fn write_report(path: &Path, report: &Report<'_>) -> std::io::Result<()> {
    if path == Path::new("-") {
        let mut stdout = std::io::stdout().lock();
        json::write(report, &mut stdout)?;
        return stdout.flush();
    }
    write_file(path, |to| json::write(report, to))
}

/// Prints, and ignores errors: a closed output changes no verdict.
fn print(mut to: impl std::io::Write, text: impl Display) {
    let _ = write!(to, "{text}").and_then(|()| to.flush());
}

fn print_error(message: impl Display) {
    const BAD: Style = AnsiColor::Red.on_default().bold();
    print(
        anstream::stderr(),
        format_args!("{BAD}tracer{BAD:#} {message}\n"),
    );
}

/// Returns the level that `RUST_LOG` names; without one, warnings are shown.
fn log_level() -> log::LevelFilter {
    let level = std::env::var("RUST_LOG").ok();
    let level = level.and_then(|level| level.parse().ok());
    level.unwrap_or(log::LevelFilter::Warn)
}

/// Prints what the audit and the eBPF programs log.
struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            print_error(record.args());
        }
    }

    fn flush(&self) {}
}
