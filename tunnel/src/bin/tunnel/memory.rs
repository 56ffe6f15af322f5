//! How long freed memory is kept. While streams are busy glibc would return the end of its heap to the kernel and fetch it again with
//! every few messages; after a burst it would keep the pages of thousands of streams that are gone.

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

/// What glibc may keep at the end of each of its heaps, in bytes: about what a few busy streams hold.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 4 * 1024 * 1024;

/// Lets buffers of busy streams be used again before their pages are given back. To be called before there are threads.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "glibc's allocator has no safe interface")]
pub(crate) fn keep_some() {
    // SAFETY: it takes no pointer. Where it fails everything works as before.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_some() {}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "glibc's allocator has no safe interface")]
fn trim() {
    // SAFETY: it takes no pointer and locks the arenas itself.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
