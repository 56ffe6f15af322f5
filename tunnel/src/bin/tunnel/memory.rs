//! Gives memory back after a burst: glibc keeps the pages of thousands of streams that are gone for streams to come.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tunnel::metrics::Metrics;

/// How often the streams are counted.
const STEP: Duration = Duration::from_secs(1);
/// How many streams must have been there for their pages to be worth the search.
const WORTH: i64 = 256;

/// Watches how many streams there are, and gives memory back each time that half of them are gone.
pub(crate) async fn give_back(metrics: &Metrics) -> Infallible {
    let mut timer = interval(STEP);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut peak = 0;
    loop {
        timer.tick().await;
        let streams = metrics.streams();
        peak = peak.max(streams);
        if peak >= WORTH && streams <= peak / 2 {
            peak = streams;
            // Off the workers: it takes milliseconds. It fails only as the runtime shuts down.
            let _ = tokio::task::spawn_blocking(trim).await;
        }
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "glibc's allocator has no safe interface")]
fn trim() {
    // SAFETY: it takes no pointer and locks the arenas itself.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
