//! Bounds how many lookups run at once, and orders those that wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

/// How long a lookup keeps its slot while others wait. Most take milliseconds. Those of a zone
/// whose servers are dead take much longer.
const SHARE: Duration = Duration::from_secs(1);

/// A bounded number of slots, which are granted in the order of the requests.
pub(super) struct Slots {
    free: Semaphore,
    waiting: AtomicUsize,
    /// A lookup began to wait.
    wanted: Notify,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self {
            free: Semaphore::new(count),
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
        }
    }

    /// Runs a lookup in a slot. One that takes longer than [`SHARE`] gives its slot to another that
    /// waits and starts again later. So names whose servers are dead do not hold up other names.
    /// The caller sets the deadline.
    pub(super) async fn run<F: Future>(&self, lookup: impl Fn() -> F) -> F::Output {
        loop {
            let _slot = self.acquire().await;
            let mut running = std::pin::pin!(lookup());
            if let Ok(done) = tokio::time::timeout(SHARE, &mut running).await {
                return done;
            }
            tokio::select! {
                biased;
                done = &mut running => return done,
                () = self.wanted() => {}
            }
        }
    }

    async fn acquire(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        if let Ok(slot) = self.free.try_acquire() {
            return Some(slot);
        }
        let _waiting = Waiting::begin(&self.waiting);
        self.wanted.notify_one();
        // The semaphore is never closed.
        self.free.acquire().await.ok()
    }

    /// Returns when a lookup waits for a slot.
    async fn wanted(&self) {
        while self.waiting.load(Ordering::SeqCst) == 0 {
            self.wanted.notified().await;
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::future::join_all;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::io::clock::Clock;

    #[tokio::test(start_paused = true)]
    async fn no_more_run_than_there_are_slots() {
        let (slots, running, most) = (Slots::new(3), AtomicUsize::new(0), AtomicUsize::new(0));
        let lookup = async || {
            let _running = Waiting::begin(&running);
            most.fetch_max(running.load(Ordering::SeqCst), Ordering::SeqCst);
            sleep(Duration::from_millis(10)).await;
        };
        let clock = Clock::start();
        join_all((0..9).map(|_| slots.run(lookup))).await;
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert_eq!(clock.now().as_millis(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_never_end_do_not_hold_up_others() {
        let slots = Slots::new(4);
        let dead = join_all((0..20).map(|_| slots.run(pending::<()>)));
        let good = async {
            for _ in 0..3 {
                let clock = Clock::start();
                let done = slots.run(|| sleep(Duration::from_millis(5)));
                timeout(Duration::from_secs(60), done).await.unwrap();
                // Sixteen dead lookups may be ahead of it, four at a time.
                assert!(clock.now() <= SHARE * 6, "{:?}", clock.now());
            }
        };
        tokio::select! {
            biased;
            _ = dead => unreachable!("they never end"),
            () = good => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_lookup_is_left_alone_while_nobody_waits() {
        let slots = Slots::new(1);
        let clock = Clock::start();
        slots.run(|| sleep(SHARE * 5)).await;
        assert_eq!(clock.now(), SHARE * 5);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_dropped_gives_its_slot_back() {
        let slots = Slots::new(1);
        let short = Duration::from_millis(5);
        assert!(timeout(short, slots.run(pending::<()>)).await.is_err());
        assert_eq!(timeout(short, slots.run(async || 7)).await, Ok(7));
    }
}
