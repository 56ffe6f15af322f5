//! `tracer attach --for`: judges programs that run already, which go on undisturbed.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracer_core::report::{AuditLog, Target};

use crate::audit::Audit;
use crate::event_loop::{EventLoop, POLL_INTERVAL, Signals};
use crate::metrics::Endpoint;

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
