//! Random numbers for identifiers and jitter, seeded by the system. Not for secrets.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Returns a random number.
pub(crate) fn number() -> u64 {
    // A RandomState has a fresh SipHash key that the system seeds; SipHash of nothing under it is as good as random.
    RandomState::new().build_hasher().finish()
}

/// Returns a random session identifier, which is never zero.
pub(crate) fn session_id() -> u64 {
    number().max(1)
}

/// Returns a random duration up to `limit` (full jitter).
pub(crate) fn up_to(limit: Duration) -> Duration {
    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(match nanos.checked_add(1) {
        Some(count) => number() % count,
        None => number(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_and_jitter_stays_within_its_limit() {
        let ids: std::collections::HashSet<u64> = (0..1000).map(|_| session_id()).collect();
        assert_eq!(ids.len(), 1000);
        let limit = Duration::from_millis(100);
        assert!((0..1000).all(|_| up_to(limit) <= limit));
        assert_eq!(up_to(Duration::ZERO), Duration::ZERO);
    }
}
