//! The remote addresses: how many connections each had and has.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use tracer_abi::facts::{Facts, fact};
use tracer_abi::record::ReleaseEvent;

use super::lifetime::address;

/// How many addresses are told apart; the connections of any others are counted under [`OTHER`].
const ADDRESSES: usize = 4096;
/// The address of connections whose own no longer fits.
pub const OTHER: &str = "~other";

/// The connections of one remote address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Released ones.
    pub released: u64,
    /// Open ones at the last walk of the witness.
    pub open: u64,
    /// When the oldest open one was opened.
    pub oldest_ns: Option<u64>,
}

/// The connections of all remote addresses.
#[derive(Debug, Default)]
pub struct Peers(HashMap<String, Peer>);

impl Peers {
    /// Counts a released connection.
    pub fn released(&mut self, remote: Option<Remote>) {
        if let Some(peer) = self.of(remote) {
            peer.released += 1;
        }
    }

    /// Starts to count the open ones anew.
    pub fn recount(&mut self) {
        for peer in self.0.values_mut() {
            peer.open = 0;
            peer.oldest_ns = None;
        }
    }

    /// Counts an open connection.
    pub fn open(&mut self, facts: &Facts) {
        if let Some(peer) = self.of(Remote::of(facts)) {
            peer.open += 1;
            let oldest = peer.oldest_ns.unwrap_or(facts.born_ns);
            peer.oldest_ns = Some(oldest.min(facts.born_ns));
        }
    }

    /// Returns the addresses with most open connections, then with most of all, at most `limit`.
    #[must_use]
    pub fn top(&self, limit: usize) -> Vec<(&str, &Peer)> {
        let mut peers: Vec<(&str, &Peer)> = self
            .0
            .iter()
            .map(|(address, peer)| (address.as_str(), peer))
            .collect();
        peers.sort_by(|(a, x), (b, y)| (y.open, y.released, *a).cmp(&(x.open, x.released, *b)));
        peers.truncate(limit);
        peers
    }

    fn of(&mut self, remote: Option<Remote>) -> Option<&mut Peer> {
        let address = remote?.to_string();
        let address = if self.0.len() < ADDRESSES || self.0.contains_key(&address) {
            address
        } else {
            OTHER.to_owned()
        };
        Some(self.0.entry(address).or_default())
    }
}

/// Where a connection goes. It is written as address and port of a target; of a visitor as the address alone, for its port
/// says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    address: SocketAddr,
    dialed: bool,
}

impl Remote {
    /// Returns where an open connection goes; `None` for a socket that never had one.
    #[must_use]
    pub fn of(facts: &Facts) -> Option<Self> {
        Self::new(facts.family, facts.remote, facts.remote_port, facts.flags)
    }

    /// Returns where a released connection went.
    #[must_use]
    pub fn of_release(of: &ReleaseEvent) -> Option<Self> {
        Self::new(of.brief.family, of.remote, of.remote_port, of.brief.flags)
    }

    fn new(family: u16, bytes: [u8; 16], port: u16, flags: u32) -> Option<Self> {
        (port != 0).then(|| Self {
            address: SocketAddr::new(address(family, bytes), port),
            dialed: flags & fact::DIALED != 0,
        })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dialed {
            self.address.fmt(f)
        } else {
            self.address.ip().fmt(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lifetime::tests::facts;
    use super::*;

    fn dialed(port: u16) -> Facts {
        let mut facts = facts(1);
        facts.flags |= fact::DIALED;
        facts.remote = [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        facts.remote_port = port;
        facts.local_port = 1;
        facts
    }

    #[test]
    fn targets_are_told_apart_by_port_and_visitors_are_not() {
        let mut peers = Peers::default();
        peers.released(Remote::of(&dialed(80)));
        peers.released(Remote::of(&dialed(81)));
        let mut visitor = dialed(5555);
        visitor.flags = fact::CHILD;
        peers.open(&visitor);
        let top: Vec<&str> = peers
            .top(9)
            .into_iter()
            .map(|(address, _)| address)
            .collect();
        assert_eq!(top, ["127.0.0.1", "127.0.0.1:80", "127.0.0.1:81"]);
    }

    #[test]
    fn addresses_are_bounded() {
        let mut peers = Peers::default();
        for port in 1..=5000 {
            peers.released(Remote::of(&dialed(port)));
        }
        assert_eq!(peers.0.len(), ADDRESSES + 1);
        assert_eq!(peers.0[OTHER].released, 5000 - ADDRESSES as u64);
    }

    #[test]
    fn a_socket_that_never_had_a_peer_has_no_row() {
        let mut peers = Peers::default();
        peers.released(Remote::of(&facts(1)));
        assert!(peers.top(9).is_empty());
    }
}
