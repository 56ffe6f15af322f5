//! `tracer run`: runs a command in a cgroup of its own, from its first instruction to its end.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Pid, Signal as KillSignal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracer_core::report::{AuditLog, Target};

use crate::audit::Audit;
use crate::cgroup;
use crate::event_loop::{EventLoop, POLL_INTERVAL, Signals, sleep_until_some};
use crate::exec::{NotStarted, Start};
use crate::metrics::Endpoint;
use crate::terminal::Terminal;

/// How long the command may take to end after SIGTERM.
const TERM_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to check whether the last process of the command has ended.
const EMPTY_INTERVAL: Duration = Duration::from_millis(50);

/// The settings of `tracer run`.
#[derive(Debug)]
pub struct Settings {
    /// The file of the command.
    pub program: PathBuf,
    /// The command and its arguments, as the user wrote them.
    pub command: Vec<OsString>,
    /// How long to audit; `None` until the command ends.
    pub window: Option<Duration>,
    /// The grace, for processes that outlive the command.
    pub grace: Duration,
}

/// What ended the audit's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopReason {
    /// The command ended.
    Command,
    /// The time (`--for`) was up.
    Window,
    /// A signal came.
    Signal,
}

/// A command that may still run after its verdict.
#[must_use = "it goes on until it is ended"]
pub struct AuditedCommand {
    child: Child,
    stop_reason: StopReason,
    _job_control: JobControl,
}

impl AuditedCommand {
    /// Ends the command and all processes of its cgroup. If the command ended by itself, processes
    /// that it left behind go on.
    pub async fn end(mut self, audit: &Audit, signals: &mut Signals) {
        match self.stop_reason {
            StopReason::Command => report_survivors(audit),
            StopReason::Window | StopReason::Signal => {
                end_command(audit, &mut self.child, signals).await
            }
        }
    }
}

/// Runs the command under `audit` until the window ends, and returns the audit's log.
///
/// # Errors
///
/// When the command cannot be waited for; [`NotStarted`] when it was not executed.
pub async fn run(
    audit: &mut Audit,
    settings: &Settings,
    endpoint: Option<&mut Endpoint>,
    signals: &mut Signals,
) -> Result<(AuditLog, AuditedCommand)> {
    let start = Start::new()?;
    let cgroup = audit.audited();
    let mut command: Command = start
        .command(cgroup, &settings.program, &settings.command)?
        .into();
    // A process group of its own: Ctrl-C ends the audit, not the command.
    command.process_group(0);
    let mut job_control = JobControl::new()?;
    let mut child = command
        .spawn()
        .map_err(|error| NotStarted::not_spawned(&error))?;
    let started = start.spawned();
    let group = group(&child);
    let mut event_loop = EventLoop::new(audit, endpoint)?;
    let deadline = settings.window.map(|window| Instant::now() + window);

    let mut status = None;
    let stop_reason = loop {
        tokio::select! {
            ended = child.wait(), if status.is_none() => {
                status = Some(ended?);
                if let Some(not_started) = started.failure()? {
                    return Err(not_started.into());
                }
                // The window also applies when the command went on in the background.
                if deadline.is_none() || !cgroup::is_populated(audit.audited()) {
                    break StopReason::Command;
                }
            }
            () = sleep(EMPTY_INTERVAL), if status.is_some() => {
                if !cgroup::is_populated(audit.audited()) {
                    break StopReason::Command;
                }
            }
            () = sleep_until_some(deadline) => break StopReason::Window,
            () = signals.recv() => break StopReason::Signal,
            never = event_loop.run(audit) => match never {},
            never = job_control.run(group) => match never {},
        }
    };
    // A process outside the cgroup may hold a socket of the command.
    let mut is_cut_short = false;
    let has_open = audit
        .counts()
        .counters()
        .is_ok_and(|counters| counters.open() > 0);
    if has_open || cgroup::is_populated(audit.audited()) {
        // A request that ended just now still has its grace.
        let grace_over = Instant::now() + settings.grace + POLL_INTERVAL;
        tokio::select! {
            () = sleep_until(grace_over) => {}
            () = signals.recv() => is_cut_short = true,
            never = event_loop.run(audit) => match never {},
        }
    }
    drop(event_loop);
    let audit_log = audit.finish(target(audit, settings, status), is_cut_short);
    let command = AuditedCommand {
        child,
        stop_reason,
        _job_control: job_control,
    };
    Ok((audit_log, command))
}

/// Returns the command's process group, which has the PID of its leader.
fn group(child: &Child) -> Option<Pid> {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    id.and_then(Pid::from_raw)
}

/// Lends the terminal to the command when it needs it.
struct JobControl {
    changes: Signal,
    terminal: Option<Terminal>,
}

impl JobControl {
    fn new() -> io::Result<Self> {
        Ok(Self {
            changes: signal(SignalKind::child())?,
            terminal: Terminal::from_stdin(),
        })
    }

    async fn run(&mut self, command: Option<Pid>) -> Infallible {
        loop {
            if self.changes.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            if let (Some(terminal), Some(command)) = (&mut self.terminal, command) {
                terminal.handle_stop(command);
            }
        }
    }
}

fn target(audit: &Audit, settings: &Settings, status: Option<ExitStatus>) -> Target {
    Target {
        cgroup: audit.audited().display().to_string(),
        command: settings
            .command
            .iter()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect(),
        exit_status: status.and_then(exit_code),
    }
}

/// Returns the status as a shell does: 128 plus the signal's number for a signal.
fn exit_code(status: ExitStatus) -> Option<i32> {
    status
        .code()
        .or_else(|| status.signal().map(|number| 128 + number))
}

fn report_survivors(audit: &Audit) {
    let survivors = cgroup::processes(audit.audited());
    if !survivors.is_empty() {
        log::warn!(
            "{} processes outlive the command; they go on outside the audit",
            survivors.len()
        );
    }
}

/// Sends SIGTERM to the command, waits, and kills what is left.
async fn end_command(audit: &Audit, child: &mut Child, signals: &mut Signals) {
    if let Some(group) = group(child) {
        // It may have ended already.
        let _ = kill_process_group(group, KillSignal::TERM);
    }
    let emptied = async {
        let _ = child.wait().await;
        while cgroup::is_populated(audit.audited()) {
            sleep(POLL_INTERVAL).await;
        }
    };
    tokio::select! {
        ended = timeout(TERM_TIMEOUT, emptied) => if ended.is_ok() { return },
        () = signals.recv() => {}
    }
    cgroup::kill(audit.audited());
    let _ = child.wait().await;
}
