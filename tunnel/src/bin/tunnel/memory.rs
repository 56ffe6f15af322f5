//! How long freed memory is kept. While streams are busy glibc would return the ends of its heaps
//! to the kernel and fetch them again with every few messages; after a burst it would keep pages of
//! thousands of streams that are gone.

mod cache;

use std::convert::Infallible;
use std::time::Duration;

use cache::Taken;
use tokio::time::{MissedTickBehavior, interval};
use tunnel::metrics::Metrics;

/// How often the streams are counted.
const STEP: Duration = Duration::from_secs(1);
/// How many streams must have been there for their pages to be worth the search.
const MIN_STREAMS: i64 = 16;

/// Watches how many streams there are, and gives memory back each time that half of them are gone
/// and stay so for a step: under a steady load of short ones their number goes up and down.
pub(crate) async fn trim_after_bursts(metrics: &Metrics) -> Infallible {
    let mut timer = interval(STEP);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut peak = 0;
    let mut were_gone = false;
    loop {
        timer.tick().await;
        let streams = metrics.streams();
        peak = peak.max(streams);
        let gone = peak >= MIN_STREAMS && streams <= peak / 2;
        if gone && were_gone {
            peak = streams;
            let taken = cache::take_out().await;
            // Off the workers: it takes milliseconds. It fails only as the runtime shuts down.
            let _ = tokio::task::spawn_blocking(|| trim(taken)).await;
        }
        were_gone = gone;
    }
}

/// What glibc may keep at the end of each of its heaps while streams are busy, in bytes: about what
/// a few of them hold.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 4 * 1024 * 1024;
/// How much more than it needs glibc asks the kernel for, and leaves where it gives back, in bytes:
/// its own default.
#[cfg(target_env = "gnu")]
const PAD: libc::c_int = 128 * 1024;

/// Lets buffers of busy streams be used again before their pages are given back. To be called
/// before there are threads.
#[cfg(target_env = "gnu")]
pub(crate) fn keep_some() {
    keep(KEPT, PAD);
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_some() {}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "glibc's allocator has no safe interface")]
fn keep(most: libc::c_int, pad: libc::c_int) {
    // SAFETY: they take no pointer. The manual warns of calls beside other threads because these
    // read the numbers without a lock: a word each, and either value of it is good at any time.
    // Where they fail everything works as before.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, most);
        libc::mallopt(libc::M_TOP_PAD, pad);
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "glibc's allocator has no safe interface")]
fn trim(taken: Taken) {
    // `malloc_trim` looks at the end of the first heap only; the others' ends go as what was taken
    // of them is freed.
    keep(0, 0);
    taken.free();
    // SAFETY: it takes no pointer and locks the arenas itself.
    unsafe { libc::malloc_trim(0) };
    keep(KEPT, PAD);
}

#[cfg(not(target_env = "gnu"))]
fn trim(taken: Taken) {
    taken.free();
}
