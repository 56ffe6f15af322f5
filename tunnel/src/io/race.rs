//! Connects to the first of several addresses that answers: "Happy Eyeballs" (RFC 8305).

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

/// How long an attempt runs before the next one begins (RFC 8305, section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Attempts one address after the other. The next attempt begins when one fails, or after
/// [`ATTEMPT_DELAY`]. Returns the first success; all other attempts are dropped by then. If all
/// fail it returns the last error, and without addresses it returns `none`.
pub(crate) async fn race<T, E, F>(
    addresses: Vec<SocketAddr>,
    none: E,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut failure = none;
    let mut waiting = interleave(addresses).into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        if let Some(address) = waiting.next() {
            running.push(attempt(address));
        }
        let done = tokio::select! {
            biased;
            done = running.next() => done,
            () = tokio::time::sleep(ATTEMPT_DELAY), if waiting.len() > 0 => continue,
        };
        match done {
            Some(Ok(won)) => return Ok(won),
            Some(Err(error)) => failure = error,
            None => return Err(failure),
        }
    }
}

/// Alternates the address families, beginning with that of the first address. Within a family the
/// order is kept (RFC 8305, section 4).
pub(crate) fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let leads_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv4() == leads_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::with_capacity(first.len() + second.len());
    while first.len() + second.len() > 0 {
        order.extend(first.next());
        order.extend(second.next());
    }
    order
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::io::clock::Clock;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        for (given, order) in [
            (vec![], vec![]),
            (vec!["[::1]:1", "[::2]:1"], vec!["[::1]:1", "[::2]:1"]),
            (
                vec!["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"],
                vec!["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"],
            ),
            (
                vec!["1.1.1.1:1", "[::1]:1", "[::2]:1"],
                vec!["1.1.1.1:1", "[::1]:1", "[::2]:1"],
            ),
        ] {
            assert_eq!(interleave(addresses(&given)), addresses(&order));
        }
    }

    /// Attempts that take the milliseconds of their port and succeed if it is even; logs when each
    /// began.
    struct Track {
        clock: Clock,
        began: Mutex<Vec<(u16, u128)>>,
        alive: AtomicUsize,
    }

    struct Alive<'a>(&'a AtomicUsize);

    impl Drop for Alive<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl Track {
        fn new() -> Self {
            Self {
                clock: Clock::start(),
                began: Mutex::default(),
                alive: AtomicUsize::new(0),
            }
        }

        async fn attempt(&self, address: SocketAddr) -> Result<u16, u16> {
            let port = address.port();
            let began = (port, self.clock.now().as_millis());
            self.began.lock().unwrap().push(began);
            self.alive.fetch_add(1, Ordering::SeqCst);
            let _alive = Alive(&self.alive);
            tokio::time::sleep(Duration::from_millis(port.into())).await;
            if port.is_multiple_of(2) {
                Ok(port)
            } else {
                Err(port)
            }
        }

        async fn race(&self, ports: &[u16]) -> Result<u16, u16> {
            let addresses = ports
                .iter()
                .map(|port| SocketAddr::from(([127, 0, 0, 1], *port)));
            race(addresses.collect(), 0, |address| self.attempt(address)).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_wins_and_no_attempt_is_left() {
        let track = Track::new();
        assert_eq!(track.race(&[10_000, 20_000, 100, 8]).await, Ok(100));
        assert_eq!(
            *track.began.lock().unwrap(),
            [(10_000, 0), (20_000, 250), (100, 500)]
        );
        assert_eq!(track.clock.now().as_millis(), 600);
        assert_eq!(track.alive.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_does_not_wait_for_the_delay() {
        let track = Track::new();
        assert_eq!(track.race(&[11, 13, 20]).await, Ok(20));
        assert_eq!(*track.began.lock().unwrap(), [(11, 0), (13, 11), (20, 24)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_attempt_may_still_win() {
        let track = Track::new();
        assert_eq!(track.race(&[300, 2000]).await, Ok(300));
        assert_eq!(track.clock.now().as_millis(), 300);
        assert_eq!(track.alive.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_failure_is_told() {
        let track = Track::new();
        assert_eq!(track.race(&[301, 3]).await, Err(301));
        assert_eq!(track.race(&[]).await, Err(0));
    }
}
