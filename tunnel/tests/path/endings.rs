//! Endings at random moments, at either side. What arrived is a prefix of what was sent, an orderly
//! end loses nothing, and the other side learns of it soon.
//!
//! `WATERTIGHT_TEST_SEED` makes the same plans again; a test that fails has printed its seed.
//! `WATERTIGHT_TEST_SECONDS` gives each test more time than [`TIME`].

mod pattern;
mod processes;
mod streams;

use std::time::{Duration, Instant};

/// Endings of each kind.
const COUNT: usize = 200;

/// After this many seconds no further ending begins; what was left out is printed.
const TIME: u64 = 20;

/// Random numbers that a seed repeats.
#[derive(Clone, Debug)]
pub(crate) struct Rng(fastrand::Rng);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    fn next(&mut self) -> u64 {
        self.0.u64(..)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(..limit)
    }

    /// Small numbers are as likely as large ones. A half-closed stream of this length finishes
    /// within the tracer's grace.
    fn length(&mut self) -> usize {
        let magnitude = self.below(17);
        usize::try_from(self.below(2 << magnitude)).unwrap()
    }
}

/// Hands out one random generator for each ending, until they are enough or have taken long enough.
struct Endings {
    seed: u64,
    began: Instant,
    time: Duration,
    next: usize,
}

impl Drop for Endings {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        eprintln!("{} of {COUNT} endings in {took:.1?}", self.next);
    }
}

impl Endings {
    fn begin(what: &str) -> Self {
        let set = |name| std::env::var(name).map(|number| number.parse().unwrap());
        let random = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), what);
        let seed = set("WATERTIGHT_TEST_SEED").unwrap_or_else(|_| random());
        let seconds = set("WATERTIGHT_TEST_SECONDS").unwrap_or(TIME);
        eprintln!("{what}: WATERTIGHT_TEST_SEED={seed}");
        Self {
            seed,
            began: Instant::now(),
            time: Duration::from_secs(seconds),
            next: 0,
        }
    }
}

impl Iterator for Endings {
    type Item = Rng;

    fn next(&mut self) -> Option<Rng> {
        if self.next == COUNT || self.began.elapsed() > self.time {
            return None;
        }
        self.next += 1;
        // So that neighbours have nothing in common.
        let own = Rng::new(self.next as u64).next();
        Some(Rng::new(self.seed ^ own))
    }
}
