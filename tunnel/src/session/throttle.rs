//! How many bytes a second the streams of one agent carry together, both directions counted. What
//! is too much is not read: the sender waits, and nothing is dropped.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tunnel_proto::token_bucket::Bucket;

use crate::io::clock::Clock;

/// Slows streams down.
#[derive(Debug)]
pub(crate) struct Throttle {
    clock: Clock,
    bucket: Mutex<Bucket>,
}

impl Throttle {
    /// Allows `rate` bytes a second; after a pause, as many at once as a second brings.
    pub(crate) fn new(clock: Clock, rate: NonZeroU64) -> Self {
        Self {
            clock,
            bucket: Mutex::new(Bucket::new(rate, rate.get())),
        }
    }

    /// Counts bytes that were carried.
    pub(crate) fn carried(&self, bytes: usize) {
        let now = self.clock.now();
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(now, bytes as u64);
    }

    /// Returns how long nothing may be carried.
    pub(crate) fn wait(&self) -> Duration {
        let now = self.clock.now();
        let bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.wait(now)
    }
}
