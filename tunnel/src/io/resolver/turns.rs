//! A bounded number of places that are granted fairly among zones.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// Grants places in turn: first to the newest request of all, then to the newest of the zone whose
/// turn it is. So neither a crowd that came earlier nor one zone's crowd holds up a request. The
/// oldest of a crowd wait longest. Their callers set the deadline.
pub(super) struct Turns {
    state: Mutex<State>,
    /// A request began to wait.
    wanted: Notify,
}

struct State {
    free: usize,
    next_ticket: u64,
    waiting: BTreeMap<u64, Request>,
    /// The tickets that wait, by zone.
    zones: HashMap<String, BTreeSet<u64>>,
    /// The zones of those that wait, in the order of their turns.
    order: VecDeque<String>,
    /// The next place is that of the newest request, whatever its zone.
    newest_is_next: bool,
}

struct Request {
    zone: String,
    granted: oneshot::Sender<()>,
}

impl Turns {
    pub(super) fn new(count: usize) -> Self {
        Self {
            state: Mutex::new(State {
                free: count,
                next_ticket: 0,
                waiting: BTreeMap::new(),
                zones: HashMap::new(),
                order: VecDeque::new(),
                newest_is_next: true,
            }),
            wanted: Notify::new(),
        }
    }

    /// Takes a place if one is free.
    pub(super) fn try_acquire(&self) -> Option<Place<'_>> {
        let ticket = self.lock().take()?;
        Some(Place {
            turns: self,
            ticket,
        })
    }

    /// Waits for a place.
    pub(super) async fn acquire(&self, zone: &str) -> Place<'_> {
        let (place, grant) = self.request(zone);
        if let Some(grant) = grant {
            self.wanted.notify_one();
            // The sender is dropped only with the place, or after it was used.
            let _ = grant.await;
        }
        place
    }

    /// Takes a place, or queues for it.
    fn request(&self, zone: &str) -> (Place<'_>, Option<oneshot::Receiver<()>>) {
        let mut state = self.lock();
        let (ticket, grant) = match state.take() {
            Some(ticket) => (ticket, None),
            None => {
                let (granted, grant) = oneshot::channel();
                (state.enqueue(zone, granted), Some(grant))
            }
        };
        let place = Place {
            turns: self,
            ticket,
        };
        (place, grant)
    }

    /// Returns when a request waits for a place.
    pub(super) async fn wanted(&self) {
        while self.lock().waiting.is_empty() {
            self.wanted.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Option<u64> {
        self.free = self.free.checked_sub(1)?;
        Some(self.ticket())
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn enqueue(&mut self, zone: &str, granted: oneshot::Sender<()>) -> u64 {
        let ticket = self.ticket();
        let tickets = self.zones.entry(zone.to_owned()).or_default();
        if tickets.is_empty() {
            self.order.push_back(zone.to_owned());
        }
        tickets.insert(ticket);
        let zone = zone.to_owned();
        self.waiting.insert(ticket, Request { zone, granted });
        ticket
    }

    /// Removes a request that waits. An emptied zone loses its turn.
    fn remove(&mut self, ticket: u64) -> Option<Request> {
        let request = self.waiting.remove(&ticket)?;
        if let Some(tickets) = self.zones.get_mut(&request.zone) {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.zones.remove(&request.zone);
                self.order.retain(|zone| *zone != request.zone);
            }
        }
        Some(request)
    }

    /// Returns the ticket that a free place is for.
    fn next(&mut self) -> Option<u64> {
        self.newest_is_next = !self.newest_is_next;
        if !self.newest_is_next {
            return self.waiting.last_key_value().map(|(ticket, _)| *ticket);
        }
        self.order.rotate_left(1.min(self.order.len()));
        let zone = self.order.back()?;
        self.zones.get(zone)?.last().copied()
    }

    fn release(&mut self) {
        // A request whose caller has gone still has its place, which it releases in turn.
        match self.next().and_then(|ticket| self.remove(ticket)) {
            Some(request) => drop(request.granted.send(())),
            None => self.free += 1,
        }
    }
}

/// A place, or the request for one. Dropping it lets the next request in, or takes this one back.
pub(super) struct Place<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        if state.remove(self.ticket).is_none() {
            state.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::future::BoxFuture;
    use futures_util::poll;

    use super::*;

    type Asked<'a> = BoxFuture<'a, Place<'a>>;

    async fn ask<'a>(turns: &'a Turns, zone: &'a str) -> Asked<'a> {
        let mut asked: Asked<'_> = Box::pin(turns.acquire(zone));
        assert!(poll!(&mut asked).is_pending());
        asked
    }

    /// Releases the place and says which of the requests has it then.
    async fn pass_on<'a>(place: &mut Option<Place<'a>>, asked: &mut Vec<(u8, Asked<'a>)>) -> u8 {
        drop(place.take());
        for at in 0..asked.len() {
            if let Poll::Ready(granted) = poll!(&mut asked[at].1) {
                *place = Some(granted);
                return asked.remove(at).0;
            }
        }
        panic!("nobody has the place");
    }

    #[tokio::test]
    async fn the_newest_and_the_zones_take_turns() {
        let turns = Turns::new(1);
        let mut place = turns.try_acquire();
        let mut asked = Vec::new();
        for (number, zone) in [
            (0, "dead"),
            (1, "dead"),
            (2, "other"),
            (3, "dead"),
            (4, "dead"),
        ] {
            asked.push((number, ask(&turns, zone).await));
        }
        let mut order = Vec::new();
        for _ in 0..5 {
            order.push(pass_on(&mut place, &mut asked).await);
        }
        assert_eq!(order, [4, 3, 2, 1, 0]);
        drop(place);
        assert!(turns.try_acquire().is_some());
        assert!(turns.lock().zones.is_empty() && turns.lock().order.is_empty());
    }

    #[tokio::test]
    async fn a_zone_s_crowd_that_keeps_coming_leaves_every_other_place_to_others() {
        let turns = Turns::new(1);
        let mut place = turns.try_acquire();
        let mut asked = vec![(7, ask(&turns, "good").await)];
        let mut order = Vec::new();
        for _ in 0..4 {
            asked.push((0, ask(&turns, "dead").await));
            asked.push((0, ask(&turns, "dead").await));
            order.push(pass_on(&mut place, &mut asked).await);
        }
        assert_eq!(order, [0, 7, 0, 0]);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing_behind() {
        let turns = Turns::new(1);
        let place = turns.try_acquire();
        let (first, second) = (ask(&turns, "a").await, ask(&turns, "a").await);
        drop(second);
        // The place is granted to the first, which does not take it.
        drop(place);
        assert!(turns.try_acquire().is_none());
        drop(first);
        assert!(turns.try_acquire().is_some());
        assert!(turns.lock().waiting.is_empty());
    }
}
