//! The only place that reads the time. Cores get it as an argument.

use std::time::Duration;

use tokio::time::Instant;
use tunnel_proto::Time;

/// Measures the time since its creation. It stands still while tokio's time is paused.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts a clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "only the clock reads the time")]
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

/// Returns the wall-clock time, for the validity of certificates.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "only the clock reads the time")]
pub fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
