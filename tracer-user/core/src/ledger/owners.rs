//! The owners that sockets were bound to, and which of them ended. Memory is bounded.

use std::collections::{HashMap, VecDeque};

use tracer_abi::annotation::Owner;

/// How many owners without open sockets are kept: half of what the kernel's own table holds. An END
/// is kept until that many other owners came, so that it also applies to a dial that completes
/// late.
pub(super) const REMEMBERED_OWNERS: usize = 1 << 17;

#[derive(Debug, Default)]
struct Entry {
    open: u32,
    is_stream: bool,
    ended: bool,
    queued: bool,
}

/// The owners that have open sockets or had some lately.
#[derive(Debug, Default)]
pub(super) struct Owners {
    entries: HashMap<Owner, Entry>,
    /// Open sockets of each session, over all its streams.
    sessions: HashMap<u64, u32>,
    /// Owners without open sockets, the oldest first.
    idle: VecDeque<Owner>,
}

impl Owners {
    /// Adds a socket to `owner`. Returns `true` for the first socket of a stream.
    pub(super) fn bind(&mut self, owner: Owner, as_stream: bool) -> bool {
        *self.sessions.entry(owner.session).or_default() += 1;
        let entry = self.entries.entry(owner).or_default();
        entry.open = entry.open.saturating_add(1);
        as_stream && !std::mem::replace(&mut entry.is_stream, true)
    }

    /// Removes a socket from `owner`: it was released or bound to another.
    pub(super) fn unbind(&mut self, owner: Owner) {
        if let Some(open) = self.sessions.get_mut(&owner.session) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                self.sessions.remove(&owner.session);
            }
        }
        if let Some(entry) = self.entries.get_mut(&owner) {
            entry.open = entry.open.saturating_sub(1);
        }
        self.queue(owner);
    }

    /// Records an END.
    pub(super) fn end(&mut self, owner: Owner) {
        self.entries.entry(owner).or_default().ended = true;
        self.queue(owner);
    }

    /// Whether the owner or its session is known to have ended.
    #[must_use]
    pub(super) fn has_ended(&self, owner: Owner) -> bool {
        [owner, owner.whole_session()]
            .iter()
            .any(|owner| self.entries.get(owner).is_some_and(|entry| entry.ended))
    }

    /// Whether an END of `owner` concerns an open socket.
    #[must_use]
    pub(super) fn has_open(&self, owner: Owner) -> bool {
        if owner.stream == 0 {
            return self.sessions.contains_key(&owner.session);
        }
        self.entries.get(&owner).is_some_and(|entry| entry.open > 0)
    }

    /// Forgets the oldest owners over the bound. Returns those whose END the kernel may forget too.
    pub(super) fn forget(&mut self) -> Vec<Owner> {
        let mut ended = Vec::new();
        // Each is looked at once. An owner with open sockets is queued again when the last one is
        // released.
        for _ in REMEMBERED_OWNERS..self.idle.len() {
            let Some(owner) = self.idle.pop_front() else {
                break;
            };
            let Some(entry) = self.entries.get_mut(&owner) else {
                continue;
            };
            entry.queued = false;
            if entry.open > 0 {
                continue;
            }
            if owner.stream == 0 && self.sessions.contains_key(&owner.session) {
                self.queue(owner);
                continue;
            }
            if self.entries.remove(&owner).is_some_and(|entry| entry.ended) {
                ended.push(owner);
            }
        }
        ended
    }

    fn queue(&mut self, owner: Owner) {
        if let Some(entry) = self.entries.get_mut(&owner)
            && entry.open == 0
            && !entry.queued
        {
            entry.queued = true;
            self.idle.push_back(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(n: u64) -> Owner {
        Owner {
            session: 7,
            stream: n,
        }
    }

    #[test]
    fn only_the_first_bind_of_a_stream_is_counted() {
        let mut owners = Owners::default();
        assert!(
            !owners.bind(stream(1), false),
            "a pooled connection is no stream"
        );
        assert!(owners.bind(stream(1), true));
        assert!(!owners.bind(stream(1), true));
        owners.unbind(stream(1));
        owners.unbind(stream(1));
        owners.unbind(stream(1));
        assert!(!owners.bind(stream(1), true), "it is still remembered");
    }

    #[test]
    fn the_end_of_a_session_concerns_its_streams() {
        let mut owners = Owners::default();
        owners.bind(stream(1), true);
        owners.end(stream(0));
        assert!(owners.has_open(stream(0)));
        assert!(!owners.has_open(stream(2)));
        owners.unbind(stream(1));
        assert!(!owners.has_open(stream(0)));
    }

    #[test]
    #[cfg_attr(miri, ignore = "as many owners as are remembered take it too long")]
    fn memory_is_bounded_and_owners_of_open_sockets_stay() {
        let mut owners = Owners::default();
        let extra = 1000;
        owners.bind(stream(1), true);
        owners.end(stream(1));
        for n in 2..2 + (REMEMBERED_OWNERS + extra) as u64 {
            owners.bind(stream(n), true);
            owners.end(stream(n));
            owners.unbind(stream(n));
        }
        let forgotten = owners.forget();
        assert_eq!(forgotten.len(), extra);
        assert!(!forgotten.contains(&stream(1)));
        assert!(owners.has_open(stream(1)));
        assert_eq!(owners.entries.len(), REMEMBERED_OWNERS + 1);
    }
}
