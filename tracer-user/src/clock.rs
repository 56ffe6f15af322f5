//! The clock of the kernel side.

use std::time::SystemTime;

use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

/// Returns CLOCK_MONOTONIC in nanoseconds, as `bpf_ktime_get_ns` does.
#[must_use]
pub fn now_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Returns the time of day, for people and logs.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads this clock"
)]
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}

/// Returns the length of a tick in nanoseconds: the step of the coarse clock, which the kernel
/// advances once in each (`KTIME_LOW_RES`, linux/hrtimer.h).
#[must_use]
pub fn tick_ns() -> u64 {
    nanoseconds(clock_getres(ClockId::MonotonicCoarse))
}

fn nanoseconds(of: Timespec) -> u64 {
    let seconds = u64::try_from(of.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(of.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}
