//! How often something may happen: a bucket that fills at a steady rate. Time is an argument.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::Time;

/// A bucket of tokens. What is missing is kept as the time at which it will be full.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: NonZeroU64,
    /// How long it takes from empty to full.
    depth: Duration,
    full_at: Time,
}

impl Bucket {
    /// Makes a full bucket of `burst` tokens, at least one, that gains `rate` a second.
    pub fn new(rate: NonZeroU64, burst: u64) -> Self {
        let mut bucket = Self {
            rate,
            depth: Duration::ZERO,
            full_at: Time::ZERO,
        };
        bucket.depth = bucket.cost(burst.max(1));
        bucket
    }

    /// Takes `count` tokens if there are as many.
    pub fn try_take(&mut self, now: Time, count: u64) -> bool {
        let full_at = self.after(now, count);
        let taken = full_at.saturating_sub(now) <= self.depth;
        if taken {
            self.full_at = full_at;
        }
        taken
    }

    /// Takes `count` tokens, also those that are not there yet.
    pub fn take(&mut self, now: Time, count: u64) {
        self.full_at = self.after(now, count);
    }

    /// Returns how long it takes until no token is owed.
    pub fn wait(&self, now: Time) -> Duration {
        self.full_at.saturating_sub(now).saturating_sub(self.depth)
    }

    fn after(&self, now: Time, count: u64) -> Time {
        self.full_at.max(now).saturating_add(self.cost(count))
    }

    fn cost(&self, count: u64) -> Duration {
        let nanos = (u128::from(count) * 1_000_000_000).div_ceil(u128::from(self.rate.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn rate(rate: u64) -> NonZeroU64 {
        NonZeroU64::new(rate).unwrap()
    }

    #[test]
    fn a_burst_is_there_at_once_and_the_rest_in_time() {
        let mut bucket = Bucket::new(rate(10), 3);
        let now = Duration::from_secs(7);
        for taken in [true, true, true, false] {
            assert_eq!(bucket.try_take(now, 1), taken);
        }
        assert!(!bucket.try_take(now + Duration::from_millis(99), 1));
        assert!(bucket.try_take(now + Duration::from_millis(100), 1));
        // It does not overflow.
        let later = now + Duration::from_secs(60);
        for taken in [true, true, true, false] {
            assert_eq!(bucket.try_take(later, 1), taken);
        }
    }

    #[test]
    fn what_is_owed_is_waited_for() {
        let mut bucket = Bucket::new(rate(1000), 500);
        let now = Duration::from_secs(1);
        bucket.take(now, 500);
        assert_eq!(bucket.wait(now), Duration::ZERO);
        bucket.take(now, 250);
        assert_eq!(bucket.wait(now), Duration::from_millis(250));
        assert_eq!(
            bucket.wait(now + Duration::from_millis(250)),
            Duration::ZERO
        );
        bucket.take(now, u64::MAX);
        bucket.take(now, u64::MAX);
    }

    proptest! {
        /// Whatever is asked when, no more than the burst and what came since is given.
        #[test]
        fn never_more_than_the_rate(
            per_second in 1_u64..1_000_000,
            burst in 1_u64..1000,
            asked in proptest::collection::vec((0_u64..50_000_000, 1_u64..20), 1..200),
        ) {
            let mut bucket = Bucket::new(rate(per_second), burst);
            let (mut now, mut given) = (Duration::ZERO, 0_u128);
            for (later, count) in asked {
                now += Duration::from_nanos(later);
                if bucket.try_take(now, count) {
                    given += u128::from(count);
                }
                let most = u128::from(burst) + now.as_nanos() * u128::from(per_second) / 1_000_000_000 + 1;
                prop_assert!(given <= most);
            }
        }
    }
}
