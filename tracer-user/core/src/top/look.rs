//! One look: every internet socket that a process holds, as the walk met it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;

use tracer_abi::facts::{IPPROTO_MPTCP, IPPROTO_TCP};
use tracer_abi::sighting::TCP_READ;

use crate::event::Descriptor;
use crate::ledger::{TCP_CLOSE, TCP_LISTEN, address};

/// How many sockets of processes a look keeps, of about 150 bytes each. Further ones are counted
/// only.
pub(super) const SOCKETS_MAX: usize = 1 << 19;

/// What one walk over every open descriptor of the machine met.
#[derive(Debug, Default)]
pub struct Look {
    at_ns: u64,
    sockets: HashMap<SocketKey, Seen>,
    other_families: u64,
    unlisted: u64,
}

/// One socket of one process. The sockets that MPTCP accepts share the cookie of their listener:
/// the remote end tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SocketKey {
    pub(super) pid: u32,
    cookie: u64,
    remote: [u8; 16],
    remote_port: u16,
}

/// What a look tells of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) comm: [u8; 16],
    pub(super) protocol: u16,
    pub(super) state: u16,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) counters: Option<Counters>,
}

/// What changes when bytes move: those received, those acknowledged, those that wait to be read
/// and those that wait to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counters(u64, u64, u32, u32);

impl Seen {
    /// Whether TCP or MPTCP gives its state a meaning.
    pub(super) const fn is_tcp(&self) -> bool {
        matches!(self.protocol, IPPROTO_TCP | IPPROTO_MPTCP)
    }

    pub(super) const fn is_listener(&self) -> bool {
        self.is_tcp() && self.state == TCP_LISTEN
    }

    /// Whether its connection is over while a descriptor is open. One that was never connected has
    /// no remote end.
    pub(super) const fn is_dead(&self) -> bool {
        self.is_tcp() && self.state == TCP_CLOSE && self.remote.port() != 0
    }
}

impl Look {
    /// Begins a look at `at_ns`.
    #[must_use]
    pub fn new(at_ns: u64) -> Self {
        Self {
            at_ns,
            ..Self::default()
        }
    }

    /// Adds a descriptor. Another one of the same socket in the same process changes nothing.
    pub fn add(&mut self, descriptor: &Descriptor) {
        let sighting = &descriptor.sighting;
        let Some(socket) = &descriptor.socket else {
            self.other_families += 1;
            return;
        };
        let facts = &socket.facts;
        let key = SocketKey {
            pid: sighting.tgid,
            cookie: sighting.cookie,
            remote: facts.remote,
            remote_port: facts.remote_port,
        };
        let is_full = self.sockets.len() >= SOCKETS_MAX;
        match self.sockets.entry(key) {
            Entry::Occupied(_) => {}
            Entry::Vacant(_) if is_full => self.unlisted += 1,
            Entry::Vacant(vacant) => {
                let at = |bytes, port| SocketAddr::new(address(facts.family, bytes), port);
                vacant.insert(Seen {
                    comm: facts.comm,
                    protocol: facts.protocol,
                    state: u16::try_from(sighting.state).unwrap_or(0),
                    local: at(facts.local, facts.local_port),
                    remote: at(facts.remote, facts.remote_port),
                    counters: (sighting.flags & TCP_READ != 0).then_some(Counters(
                        sighting.bytes_received,
                        sighting.bytes_acked,
                        sighting.unread,
                        sighting.unsent,
                    )),
                });
            }
        }
    }

    pub(super) const fn at_ns(&self) -> u64 {
        self.at_ns
    }

    pub(super) const fn sockets(&self) -> &HashMap<SocketKey, Seen> {
        &self.sockets
    }

    pub(super) const fn other_families(&self) -> u64 {
        self.other_families
    }

    pub(super) const fn unlisted(&self) -> u64 {
        self.unlisted
    }
}
