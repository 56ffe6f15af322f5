//! The remote addresses, with the number of connections of each.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use tracer_abi::facts::{Facts, fact};
use tracer_abi::record::ReleaseEvent;

use super::tcp::address;

/// How many addresses are kept. The connections of others are counted under [`OTHER`].
const ADDRESSES: usize = 4096;
/// Stands for the addresses that are not kept.
pub const OTHER: &str = "~other";

/// The connections of one remote address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Released connections.
    pub released: u64,
    /// Connections open at the last walk of the witness.
    pub open: u64,
    /// When the oldest open connection was opened.
    pub oldest_ns: Option<u64>,
}

/// The connections of all remote addresses.
#[derive(Debug, Default)]
pub struct Peers(HashMap<String, Peer>);

impl Peers {
    /// Counts a released connection.
    pub(super) fn count_released(&mut self, remote: Option<Remote>) {
        if self.0.len() >= ADDRESSES {
            self.fold_closed();
        }
        if let Some(peer) = self.entry(remote) {
            peer.released += 1;
        }
    }

    /// Resets the number of open connections.
    pub(super) fn reset_open(&mut self) {
        for peer in self.0.values_mut() {
            peer.open = 0;
            peer.oldest_ns = None;
        }
    }

    /// Counts an open connection.
    pub(super) fn count_open(&mut self, facts: &Facts) {
        if let Some(peer) = self.entry(Remote::of(facts)) {
            peer.open += 1;
            let oldest = peer.oldest_ns.unwrap_or(facts.born_ns);
            peer.oldest_ns = Some(oldest.min(facts.born_ns));
        }
    }

    /// Returns at most `limit` addresses: those with most open connections first, then those with
    /// most released ones.
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

    /// Adds up the addresses without open connections under [`OTHER`], to make room: in an audit
    /// without an end, visitors come from ever new ones.
    fn fold_closed(&mut self) {
        let closed = self
            .0
            .extract_if(|address, peer| peer.open == 0 && address != OTHER);
        let released: u64 = closed.map(|(_, peer)| peer.released).sum();
        self.0.entry(OTHER.to_owned()).or_default().released += released;
    }

    fn entry(&mut self, remote: Option<Remote>) -> Option<&mut Peer> {
        let address = remote?.to_string();
        let address = if self.0.len() < ADDRESSES || self.0.contains_key(&address) {
            address
        } else {
            OTHER.to_owned()
        };
        Some(self.0.entry(address).or_default())
    }
}

/// The remote end of a connection: address and port of a target, or the address alone of a visitor,
/// whose port is random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    address: SocketAddr,
    dialed: bool,
}

impl Remote {
    /// Returns the remote end of an open connection; `None` for a socket without one.
    pub(super) fn of(facts: &Facts) -> Option<Self> {
        Self::new(facts.family, facts.remote, facts.remote_port, facts.flags)
    }

    /// Returns the remote end of a connection as that of a visitor.
    pub(super) fn as_visitor(self) -> Self {
        Self {
            dialed: false,
            ..self
        }
    }

    /// Returns the remote end of a released connection.
    pub(super) fn of_release(of: &ReleaseEvent) -> Option<Self> {
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
    use super::super::fixtures::facts;
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
    fn targets_have_a_row_for_each_port_and_visitors_have_not() {
        let mut peers = Peers::default();
        peers.count_released(Remote::of(&dialed(80)));
        peers.count_released(Remote::of(&dialed(81)));
        let mut visitor = dialed(5555);
        visitor.flags = fact::CHILD;
        peers.count_open(&visitor);
        let top: Vec<&str> = peers
            .top(9)
            .into_iter()
            .map(|(address, _)| address)
            .collect();
        assert_eq!(top, ["127.0.0.1", "127.0.0.1:80", "127.0.0.1:81"]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of addresses take it too long")]
    fn addresses_are_bounded() {
        let mut peers = Peers::default();
        for port in 1..=5000 {
            peers.count_released(Remote::of(&dialed(port)));
        }
        assert!(peers.0.len() <= ADDRESSES + 1);
        assert!(peers.0[OTHER].released >= ADDRESSES as u64);
        let released: u64 = peers.0.values().map(|peer| peer.released).sum();
        assert_eq!(released, 5000, "none is forgotten");
    }

    #[test]
    fn a_socket_that_never_had_a_peer_has_no_row() {
        let mut peers = Peers::default();
        peers.count_released(Remote::of(&facts(1)));
        assert!(peers.top(9).is_empty());
    }
}
