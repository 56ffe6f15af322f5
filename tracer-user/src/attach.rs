//! `tracer attach`: judges programs that run already, which go on undisturbed, after a time or for
//! as long as they run.

use std::io::{self, Write};
use std::time::Duration;

use tokio::time::{Instant, interval, sleep, sleep_until};
use tracer_core::ledger::Change;
use tracer_core::report::{AuditLog, Target};
use tracer_core::verdict::Level;

use crate::audit::Audit;
use crate::clock;
use crate::event_loop::{EventLoop, POLL_INTERVAL, Signals, next_scrape};
use crate::lines::Lines;
use crate::metrics::Endpoint;
use crate::report::json::write_change;

/// How often to look for what is to be guarded again.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often to check whether the last process has ended.
const ALIVE_INTERVAL: Duration = Duration::from_millis(100);

/// Audits for `window`, or until a signal comes or the last process has ended, and then for the
/// grace. Returns the audit's log.
///
/// # Errors
///
/// When the ring cannot be waited for.
pub async fn judge(
    audit: &mut Audit,
    window: Duration,
    grace: Duration,
    endpoint: Option<&mut Endpoint>,
    signals: &mut Signals,
) -> io::Result<AuditLog> {
    let mut event_loop = EventLoop::new(audit, endpoint)?;
    let deadline = Instant::now() + window;
    loop {
        tokio::select! {
            () = sleep_until(deadline) => break,
            () = signals.recv() => break,
            () = sleep(ALIVE_INTERVAL) => if !audit.is_alive() { break },
            never = event_loop.run(audit) => match never {},
        }
    }
    // A request that ended just now still has its grace.
    let grace_over = Instant::now() + grace + POLL_INTERVAL;
    let is_cut_short = tokio::select! {
        () = sleep_until(grace_over) => false,
        () = signals.recv() => true,
        never = event_loop.run(audit) => match never {},
    };
    drop(event_loop);
    let target = Target {
        cgroup: audit.audited().display().to_string(),
        ..Target::default()
    };
    Ok(audit.finish(target, is_cut_short))
}

/// How a guard ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    /// Whether a signal ended it. Otherwise what it guarded is gone.
    pub is_stopped: bool,
    /// Whether a denied finding ever stood.
    pub was_denied: bool,
}

/// Guards until a signal comes or what is guarded is gone, with an audit that was started as a
/// guard: each finding is a line of JSON on `to`
/// when its rule is broken, and one more when it is broken no longer. A reader who is too slow
/// misses lines.
///
/// # Errors
///
/// When the ring cannot be waited for.
pub async fn guard(
    audit: &mut Audit,
    endpoint: Option<&mut Endpoint>,
    signals: &mut Signals,
    to: impl Write + Send + 'static,
) -> io::Result<Guarded> {
    let mut event_loop = EventLoop::new(audit, endpoint)?;
    let mut alive = interval(ALIVE_INTERVAL);
    let (mut guarded, mut lines) = (Guarded::default(), Lines::start(to)?);
    loop {
        let is_over = tokio::select! {
            () = signals.recv() => {
                guarded.is_stopped = true;
                true
            }
            _ = alive.tick() => !audit.is_alive(),
            () = event_loop.turn(audit) => false,
        };
        let changes = audit.take_changes();
        guarded.was_denied |= changes.iter().any(|change| is_denied(audit, change));
        print_changes(audit, &changes, &mut lines)?;
        if is_over {
            return Ok(guarded);
        }
    }
}

/// Waits until `look` finds what is to be guarded again, as after a restart. `None` when a signal
/// comes first. Meanwhile scrapes are refused.
pub async fn wait_for<T>(
    mut look: impl FnMut() -> Option<T>,
    mut endpoint: Option<&mut Endpoint>,
    signals: &mut Signals,
) -> Option<T> {
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            () = signals.recv() => return None,
            _ = looks.tick() => if let Some(found) = look() { return Some(found) },
            Some(scrape) = next_scrape(endpoint.as_deref_mut()) => drop(scrape),
        }
    }
}

fn is_denied(audit: &Audit, change: &Change) -> bool {
    let (Change::Found(finding) | Change::Resolved(finding)) = change;
    audit.ledger().findings().levels().of(finding.kind) == Level::Deny
}

fn print_changes(audit: &Audit, changes: &[Change], lines: &mut Lines) -> io::Result<()> {
    let levels = audit.ledger().findings().levels();
    for change in changes {
        let mut line = Vec::new();
        write_change(
            change,
            levels,
            clock::time_of_day(),
            clock::now_ns(),
            &mut line,
        )?;
        lines.push(line);
    }
    Ok(())
}
