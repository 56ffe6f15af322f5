//! Exponential backoff. The wait has full jitter, so that many agents do not reconnect at the same
//! moment.

use std::time::Duration;

/// A limit that doubles from `min` to `max`. The wait is a random time up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    limit: Duration,
}

impl Backoff {
    /// Creates a backoff that starts at `min`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            limit: min.min(max),
        }
    }

    /// Returns the limit of the next wait and doubles the one after it.
    pub fn next_limit(&mut self) -> Duration {
        let limit = self.limit;
        self.limit = limit.saturating_mul(2).min(self.max);
        limit
    }

    /// Returns to the minimum.
    pub fn reset(&mut self) {
        self.limit = self.min.min(self.max);
    }

    /// Goes to the maximum.
    pub fn set_to_max(&mut self) {
        self.limit = self.max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_its_maximum_and_starts_again() {
        let milliseconds = Duration::from_millis;
        let mut backoff = Backoff::new(milliseconds(100), milliseconds(350));
        let limits: Vec<Duration> = (0..4).map(|_| backoff.next_limit()).collect();
        assert_eq!(limits, [100, 200, 350, 350].map(milliseconds));
        backoff.reset();
        assert_eq!(backoff.next_limit(), milliseconds(100));
        backoff.set_to_max();
        assert_eq!(backoff.next_limit(), milliseconds(350));
    }
}
