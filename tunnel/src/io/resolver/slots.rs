//! Bounds how many lookups run at once, and orders those that wait.

use std::time::Duration;

use crate::io::resolver::turns::Turns;

/// How long a lookup keeps its place among the new ones while others wait. Most take milliseconds.
const FIRST_TURN: Duration = Duration::from_millis(100);

/// How long a slow lookup keeps its place while others wait. Those of a zone whose servers are dead
/// take longer than any.
const SLOW_TURN: Duration = Duration::from_secs(1);

/// A bounded number of slots. A quarter of them is for lookups that have had a first turn without
/// an answer, so that those do not hold up new ones, nor new ones them.
pub(super) struct Slots {
    new: Turns,
    slow: Turns,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        let slow = (count / 4).max(1);
        Self {
            new: Turns::new(count.saturating_sub(slow).max(1)),
            slow: Turns::new(slow),
        }
    }

    /// Runs a lookup of a name in `zone` in a slot. When its turn is over and others wait it goes
    /// among the slow ones, where it starts again when there is a slot. So names whose servers are
    /// dead do not hold up other names. The caller sets the deadline.
    pub(super) async fn run<F: Future>(&self, zone: &str, lookup: impl Fn() -> F) -> F::Output {
        match self.run_first(zone, &lookup).await {
            Some(done) => done,
            None => self.run_slowly(zone, &lookup).await,
        }
    }

    async fn run_first<F: Future>(&self, zone: &str, lookup: impl Fn() -> F) -> Option<F::Output> {
        // Declared first: a place is released after the sockets of its lookup.
        let _slow;
        let place = self.new.acquire(zone).await;
        let mut running = std::pin::pin!(lookup());
        if let Some(done) = turn(&self.new, FIRST_TURN, &mut running).await {
            return Some(done);
        }
        _slow = self.slow.try_acquire()?;
        drop(place);
        turn(&self.slow, SLOW_TURN, &mut running).await
    }

    async fn run_slowly<F: Future>(&self, zone: &str, lookup: impl Fn() -> F) -> F::Output {
        loop {
            let _place = self.slow.acquire(zone).await;
            let mut running = std::pin::pin!(lookup());
            if let Some(done) = turn(&self.slow, SLOW_TURN, &mut running).await {
                return done;
            }
        }
    }
}

/// Runs a lookup until it is done, or until its turn is over and another waits for its place.
async fn turn<F: Future>(
    turns: &Turns,
    length: Duration,
    running: &mut std::pin::Pin<&mut F>,
) -> Option<F::Output> {
    if let Ok(done) = tokio::time::timeout(length, running.as_mut()).await {
        return Some(done);
    }
    tokio::select! {
        biased;
        done = running.as_mut() => Some(done),
        () = turns.wanted() => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::io::clock::Clock;

    struct Running<'a>(&'a AtomicUsize);

    impl<'a> Running<'a> {
        fn begin(count: &'a AtomicUsize, most: &AtomicUsize) -> Self {
            most.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Self(count)
        }
    }

    impl Drop for Running<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_run_than_there_are_slots() {
        for (takes, limit) in [(10, 3), (250, 4), (2500, 4)] {
            let (slots, running, most) = (Slots::new(4), AtomicUsize::new(0), AtomicUsize::new(0));
            let lookup = async || {
                let _running = Running::begin(&running, &most);
                sleep(Duration::from_millis(takes)).await;
            };
            let dead = join_all((0..50).map(|_| slots.run("zone", lookup)));
            let _ = timeout(Duration::from_secs(30), dead).await;
            assert_eq!(most.load(Ordering::SeqCst), limit, "{takes}");
            assert_eq!(running.load(Ordering::SeqCst), 0);
        }
    }

    /// A crowd of names of the dead zones, then `takes` for a name of a good one.
    async fn after_a_crowd(zones: usize, takes: Duration) -> Duration {
        let slots = Slots::new(64);
        let zones: Vec<_> = (0..5000).map(|n| format!("z{}", n % zones)).collect();
        let dead = join_all(zones.iter().map(|zone| slots.run(zone, pending::<()>)));
        let good = async {
            sleep(Duration::from_millis(1)).await;
            let clock = Clock::start();
            slots.run("good", || sleep(takes)).await;
            clock.now()
        };
        tokio::select! {
            biased;
            _ = dead => unreachable!("they never end"),
            took = good => took,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_dead_names_does_not_hold_up_good_ones() {
        for zones in [1, 10, 5000] {
            let took = after_a_crowd(zones, Duration::from_millis(5)).await;
            assert!(took <= FIRST_TURN * 2, "{zones} zones: {took:?}");
        }
        // A slow name has to wait for its zone's turn among the slow.
        for zones in [1, 10] {
            let took = after_a_crowd(zones, Duration::from_millis(800)).await;
            assert!(took <= SLOW_TURN * 3, "{zones} zones: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_lookup_is_left_alone_while_nobody_waits() {
        let slots = Slots::new(1);
        let clock = Clock::start();
        slots.run("zone", || sleep(SLOW_TURN * 5)).await;
        assert_eq!(clock.now(), SLOW_TURN * 5);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_dropped_gives_its_slot_back() {
        let slots = Slots::new(1);
        let short = Duration::from_millis(5);
        let never = slots.run("zone", pending::<()>);
        assert!(timeout(short, never).await.is_err());
        assert_eq!(timeout(short, slots.run("zone", async || 7)).await, Ok(7));
    }
}
