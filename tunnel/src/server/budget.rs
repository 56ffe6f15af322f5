//! Budgets of connections. Each kind has its own, so that none keeps another away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tunnel_proto::Time;

use crate::io::clock::Clock;
use crate::metrics::Metrics;

/// How long a handshake may take while others wait for its place.
const PATIENCE: Duration = Duration::from_secs(1);

/// The connections that the visitors of one port may have at once.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))))
    }

    /// Waits until one more connection is allowed.
    pub(crate) async fn place(&self, metrics: &Metrics) -> Option<OwnedSemaphorePermit> {
        match self.try_place(metrics) {
            Some(permit) => Some(permit),
            None => Arc::clone(&self.0).acquire_owned().await.ok(),
        }
    }

    /// Takes a place if one more connection is allowed.
    pub(crate) fn try_place(&self, metrics: &Metrics) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.0).try_acquire_owned();
        permit
            .inspect_err(|_| metrics.limit_rejected("connections"))
            .ok()
    }
}

/// The connections to the front that are not let in yet: agents until their link is up, and visitors
/// until their first request is served.
#[derive(Debug)]
pub(crate) struct Handshakes {
    max: usize,
    table: Mutex<Table>,
    released: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    since: Time,
    evicted: CancellationToken,
}

impl Handshakes {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            table: Mutex::default(),
            released: Notify::new(),
        }
    }

    /// Takes a place. If all are taken it waits, at most until the oldest handshake has taken
    /// [`PATIENCE`], which is then evicted. So silent connections do not keep an agent away.
    pub(crate) async fn begin(self: &Arc<Self>, clock: Clock, metrics: &Metrics) -> Handshake {
        loop {
            match self.try_begin(clock.now(), metrics) {
                Ok(handshake) => return handshake,
                Err(until) => {
                    let patience = tokio::time::sleep_until(clock.instant(until));
                    tokio::select! {
                        () = self.released.notified() => {}
                        () = patience => {}
                    }
                }
            }
        }
    }

    /// # Errors
    ///
    /// The time at which the oldest may be evicted.
    fn try_begin(self: &Arc<Self>, now: Time, metrics: &Metrics) -> Result<Handshake, Time> {
        let mut table = self.lock();
        if table.open.len() >= self.max
            && let Some(oldest) = table.open.first_entry()
        {
            let until = oldest.get().since + PATIENCE;
            if now < until {
                return Err(until);
            }
            oldest.remove().evicted.cancel();
            metrics.limit_rejected("handshakes");
        }
        let id = table.next;
        table.next += 1;
        let evicted = CancellationToken::new();
        let entry = Entry {
            since: now,
            evicted: evicted.clone(),
        };
        table.open.insert(id, entry);
        Ok(Handshake {
            handshakes: Arc::clone(self),
            id,
            evicted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the handshakes. Dropping it releases the place.
#[derive(Debug)]
pub(crate) struct Handshake {
    handshakes: Arc<Handshakes>,
    id: u64,
    evicted: CancellationToken,
}

impl Handshake {
    /// Returns the token that is cancelled when the connection must make room.
    pub(crate) fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        if self.handshakes.lock().open.remove(&self.id).is_some() {
            self.handshakes.released.notify_one();
        }
    }
}

/// What a connection to the front counts as: a handshake until it is let in, then a visitor.
#[derive(Debug)]
pub(crate) struct Place {
    handshake: Option<Handshake>,
    visitor: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Counts the connection among the visitors from now on. Returns `false` if there are as many
    /// as the budget allows.
    pub(crate) fn let_in(&mut self, visitors: &Budget, metrics: &Metrics) -> bool {
        if self.visitor.is_none() {
            self.visitor = visitors.try_place(metrics);
        }
        if self.visitor.is_some() {
            drop(self.handshake.take());
        }
        self.visitor.is_some()
    }
}

impl From<Handshake> for Place {
    fn from(handshake: Handshake) -> Self {
        Self {
            handshake: Some(handshake),
            visitor: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_handshake_makes_room_after_its_patience() {
        let (clock, metrics) = (Clock::start(), Metrics::new(None).unwrap());
        let handshakes = Arc::new(Handshakes::new(2));
        let first = handshakes.begin(clock, &metrics).await;
        tokio::time::sleep(PATIENCE / 2).await;
        let second = handshakes.begin(clock, &metrics).await;
        let third = handshakes.begin(clock, &metrics).await;
        assert_eq!(clock.now(), PATIENCE);
        assert!(first.evicted().is_cancelled());
        assert!(!second.evicted().is_cancelled() && !third.evicted().is_cancelled());
        // It has no place to release any more.
        drop(first);
        let mut fourth = Box::pin(handshakes.begin(clock, &metrics));
        assert!(poll!(&mut fourth).is_pending());
        drop(third);
        fourth.await;
        assert_eq!(clock.now(), PATIENCE);
    }

    #[test]
    fn who_is_let_in_is_counted_among_the_visitors_only() {
        let (metrics, visitors) = (Metrics::new(None).unwrap(), Budget::new(1));
        let handshakes = Arc::new(Handshakes::new(1));
        let begin = || handshakes.try_begin(Time::ZERO, &metrics);
        let mut place = Place::from(begin().unwrap());
        assert!(begin().is_err());
        assert!(place.let_in(&visitors, &metrics) && place.let_in(&visitors, &metrics));
        let mut other = Place::from(begin().unwrap());
        assert!(!other.let_in(&visitors, &metrics));
        drop(place);
        assert!(other.let_in(&visitors, &metrics));
    }
}
