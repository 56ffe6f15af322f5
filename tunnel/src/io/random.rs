//! Random numbers for identifiers and jitter.
//!
//! Secrets are not made here: a token takes its bytes from the system's generator, and there is
//! none where that fails.

use std::time::Duration;

/// Returns a random number from the system's generator, so that it differs from that of every other
/// process. Where that generator fails it is one that can be guessed.
pub(crate) fn rand() -> u64 {
    getrandom::u64().unwrap_or_else(|_| fastrand::u64(..))
}

/// Returns a random session identifier, which is never zero.
pub(crate) fn session_id() -> u64 {
    rand().max(1)
}

/// Returns a random duration up to `limit` (full jitter).
pub(crate) fn jitter(limit: Duration) -> Duration {
    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(fastrand::u64(..=nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_and_jitter_stays_within_its_limit() {
        let ids: std::collections::HashSet<u64> = (0..1000).map(|_| session_id()).collect();
        assert_eq!(ids.len(), 1000);
        let limit = Duration::from_millis(100);
        assert!((0..1000).all(|_| jitter(limit) <= limit));
        assert_eq!(jitter(Duration::ZERO), Duration::ZERO);
        jitter(Duration::MAX);
    }
}
