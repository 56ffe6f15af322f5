//! The one place that reads time. Cores get it as an argument.

use std::time::Duration;

use tokio::time::Instant;
use tunnel_proto::Time;

/// Counts time from its creation; it stands still when tokio's time is paused.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts counting.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the clock is where time is read")]
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Returns the time since the start.
    #[must_use]
    pub fn now(&self) -> Time {
        self.origin.elapsed()
    }

    /// Returns the instant at which [`Self::now`] will be `time`.
    #[must_use]
    pub fn instant(&self, time: Time) -> Instant {
        let far = Duration::from_secs(365 * 24 * 3600);
        self.origin + time.min(far)
    }
}

/// Returns the time of day, which certificates go by.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the clock is where time is read")]
pub fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
