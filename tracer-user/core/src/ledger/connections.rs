//! How many connections there were to each remote address, and how many each listener accepted.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use tracer_abi::facts::{Facts, fact};
use tracer_abi::record::ReleaseEvent;
use tracer_abi::release_key::ReleaseKey;

use super::tcp::address;

/// How many rows a table keeps. The connections of others are counted under [`OTHER`].
const ROWS: usize = 4096;
/// Stands for the rows that are not kept.
pub const OTHER: &str = "~other";

/// The connections of one remote address, or of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Released connections that a record told of.
    recorded: u64,
    /// Released connections that the kernel side counted without a record.
    counted: u64,
    /// How many had been released when the last walk began: what it meets was not among them.
    released_before: u64,
    /// How many there were at least at the last walk.
    opened: u64,
    /// Connections open at the last walk of the witness.
    pub open: u64,
    /// When the oldest open connection was opened.
    pub oldest_ns: Option<u64>,
}

impl Tally {
    /// Returns the number of released connections.
    #[must_use]
    pub const fn released(&self) -> u64 {
        self.recorded.saturating_add(self.counted)
    }

    /// Returns the number of connections that there ever were, as far as is known. It never
    /// decreases: those that were opened after the last walk are part of it when they are released.
    #[must_use]
    pub const fn opened(&self) -> u64 {
        let released = self.released();
        if self.opened > released {
            self.opened
        } else {
            released
        }
    }
}

/// Connections by remote address, or by listener.
#[derive(Debug, Default)]
pub struct Tallies(HashMap<String, Tally>);

impl Tallies {
    /// Returns at most `limit` rows: those with most open connections first, then those with most
    /// released ones.
    #[must_use]
    pub fn top(&self, limit: usize) -> Vec<(&str, &Tally)> {
        let mut rows: Vec<(&str, &Tally)> = self
            .0
            .iter()
            .map(|(name, tally)| (name.as_str(), tally))
            .collect();
        rows.sort_by(|(a, x), (b, y)| (y.open, y.released(), *a).cmp(&(x.open, x.released(), *b)));
        rows.truncate(limit);
        rows
    }

    fn count_released(&mut self, name: String) {
        if self.0.len() >= ROWS {
            self.fold_closed();
        }
        self.entry(name).recorded += 1;
    }

    fn count_open(&mut self, name: String, born_ns: u64) {
        let tally = self.entry(name);
        tally.open += 1;
        let oldest = tally.oldest_ns.unwrap_or(born_ns);
        tally.oldest_ns = Some(oldest.min(born_ns));
    }

    /// Sets the released ones that were counted without a record. Their rows are bounded where they
    /// are counted (`RELEASES_MAX`).
    fn set_counted(&mut self, name: String, count: u64) {
        self.0.entry(name).or_default().counted = count;
    }

    fn begin_walk(&mut self) {
        for tally in self.0.values_mut() {
            tally.released_before = tally.released();
            tally.open = 0;
            tally.oldest_ns = None;
        }
    }

    fn finish_walk(&mut self) {
        for tally in self.0.values_mut() {
            let known = tally.released_before.saturating_add(tally.open);
            tally.opened = tally.opened.max(known);
        }
    }

    /// Adds up the rows without open connections under [`OTHER`], to make room: in an audit without
    /// an end, visitors come from ever new addresses.
    fn fold_closed(&mut self) {
        let closed = self
            .0
            .extract_if(|name, tally| tally.open == 0 && tally.counted == 0 && name != OTHER);
        let recorded: u64 = closed.map(|(_, tally)| tally.recorded).sum();
        self.0.entry(OTHER.to_owned()).or_default().recorded += recorded;
    }

    fn entry(&mut self, name: String) -> &mut Tally {
        let name = if self.0.len() < ROWS || self.0.contains_key(&name) {
            name
        } else {
            OTHER.to_owned()
        };
        self.0.entry(name).or_default()
    }
}

/// The connections of the audit.
#[derive(Debug, Default)]
pub(super) struct Connections {
    by_remote: Tallies,
    by_listener: Tallies,
}

impl Connections {
    pub(super) const fn by_remote(&self) -> &Tallies {
        &self.by_remote
    }

    pub(super) const fn by_listener(&self) -> &Tallies {
        &self.by_listener
    }

    /// Counts a released connection.
    pub(super) fn count_released(&mut self, way: Way) {
        self.by_remote.count_released(way.to_string());
        if let Some(listener) = way.listener() {
            self.by_listener.count_released(listener);
        }
    }

    /// Counts an open connection.
    pub(super) fn count_open(&mut self, facts: &Facts) {
        let Some(way) = Way::of(facts) else { return };
        self.by_remote.count_open(way.to_string(), facts.born_ns);
        if let Some(listener) = way.listener() {
            self.by_listener.count_open(listener, facts.born_ns);
        }
    }

    /// Sets how many were released without a record, to a target or of a listener.
    pub(super) fn set_counted(&mut self, key: &ReleaseKey, count: u64) {
        let way = Way::of_key(key);
        match way.listener() {
            Some(listener) => self.by_listener.set_counted(listener, count),
            None => self.by_remote.set_counted(way.to_string(), count),
        }
    }

    /// Does the same for all that have no row.
    pub(super) fn set_counted_elsewhere(&mut self, count: u64) {
        if count > 0 {
            self.by_remote.set_counted(OTHER.to_owned(), count);
        }
    }

    /// Begins to count the open connections anew.
    pub(super) fn begin_walk(&mut self) {
        self.by_remote.begin_walk();
        self.by_listener.begin_walk();
    }

    /// Ends the count of the open connections.
    pub(super) fn finish_walk(&mut self) {
        self.by_remote.finish_walk();
        self.by_listener.finish_walk();
    }
}

/// From where to where a connection goes. It is shown as its remote end: address and port of a
/// target, or the address alone of a visitor, whose port is random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    remote: SocketAddr,
    local_port: u16,
    dialed: bool,
}

impl Way {
    /// Returns the way of an open connection; `None` for a socket without remote end.
    pub(super) fn of(facts: &Facts) -> Option<Self> {
        (facts.remote_port != 0).then(|| Self {
            remote: SocketAddr::new(address(facts.family, facts.remote), facts.remote_port),
            local_port: facts.local_port,
            dialed: facts.flags & fact::DIALED != 0,
        })
    }

    /// Returns the way of a released connection.
    pub(super) fn of_release(of: &ReleaseEvent) -> Option<Self> {
        (of.remote_port != 0).then(|| Self {
            remote: SocketAddr::new(address(of.brief.family, of.remote), of.remote_port),
            local_port: of.local_port,
            dialed: of.brief.flags & fact::DIALED != 0,
        })
    }

    fn of_key(key: &ReleaseKey) -> Self {
        Self {
            remote: SocketAddr::new(address(key.family, key.remote), key.remote_port),
            local_port: key.local_port,
            dialed: key.local_port == 0,
        }
    }

    /// Returns the way of a connection that a listener accepted.
    pub(super) fn as_accepted(self) -> Self {
        Self {
            dialed: false,
            ..self
        }
    }

    /// Returns the listener that accepted it, by its port: an accepted connection tells its own
    /// address, not the one that the listener is bound to.
    fn listener(self) -> Option<String> {
        (!self.dialed && self.local_port != 0).then(|| format!(":{}", self.local_port))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dialed {
            self.remote.fmt(f)
        } else {
            self.remote.ip().fmt(f)
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

    fn accepted(port: u16, at: u16) -> Facts {
        Facts {
            flags: fact::CHILD,
            local_port: at,
            ..dialed(port)
        }
    }

    fn names(tallies: &Tallies) -> Vec<&str> {
        tallies.top(9).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn targets_have_a_row_for_each_port_and_visitors_have_not() {
        let mut connections = Connections::default();
        connections.count_released(Way::of(&dialed(80)).unwrap());
        connections.count_released(Way::of(&dialed(81)).unwrap());
        connections.count_open(&accepted(5555, 80));
        let by_remote = names(connections.by_remote());
        assert_eq!(by_remote, ["127.0.0.1", "127.0.0.1:80", "127.0.0.1:81"]);
    }

    #[test]
    fn accepted_connections_are_counted_by_the_listeners_port() {
        let mut connections = Connections::default();
        for port in 5000..5003 {
            connections.count_open(&accepted(port, 8080));
        }
        connections.count_open(&dialed(80));
        connections.count_released(Way::of(&accepted(6000, 9090)).unwrap());
        let adopted = Way::of(&dialed(6001)).unwrap();
        connections.count_released(adopted.as_accepted());
        let top = connections.by_listener().top(9);
        let rows: Vec<_> = top
            .iter()
            .map(|(name, tally)| (*name, tally.open, tally.released()))
            .collect();
        assert_eq!(rows, [(":8080", 3, 0), (":1", 0, 1), (":9090", 0, 1)]);
        connections.begin_walk();
        assert_eq!(connections.by_listener().0[":8080"].open, 0);
    }

    #[test]
    fn what_was_opened_never_decreases() {
        let mut connections = Connections::default();
        let mut opened = 0;
        let mut check = |connections: &Connections, wanted: u64| {
            let now = connections.by_remote().0["127.0.0.1:80"].opened();
            assert!(now >= opened, "{now} after {opened}");
            assert_eq!(now, wanted);
            opened = now;
        };
        connections.begin_walk();
        connections.count_open(&dialed(80));
        connections.count_open(&dialed(80));
        connections.finish_walk();
        check(&connections, 2);
        // One of the two, before a walk knows.
        connections.count_released(Way::of(&dialed(80)).unwrap());
        check(&connections, 2);
        connections.begin_walk();
        connections.count_open(&dialed(80));
        connections.count_open(&dialed(80));
        // One of these, after the walk has met it.
        connections.count_released(Way::of(&dialed(80)).unwrap());
        connections.finish_walk();
        check(&connections, 3);
        let key = ReleaseKey {
            remote: dialed(80).remote,
            remote_port: 80,
            local_port: 0,
            family: 2,
            reserved: 0,
        };
        connections.set_counted(&key, 7);
        check(&connections, 9);
    }

    #[test]
    fn releases_without_a_record_are_counted_by_target_and_listener() {
        let mut connections = Connections::default();
        let listener = ReleaseKey {
            remote: [0; 16],
            remote_port: 0,
            local_port: 8080,
            family: 10,
            reserved: 0,
        };
        connections.set_counted(&listener, 5);
        connections.set_counted(&listener, 6);
        connections.set_counted_elsewhere(3);
        connections.count_released(Way::of(&accepted(5000, 8080)).unwrap());
        assert_eq!(connections.by_listener().0[":8080"].released(), 7);
        assert_eq!(connections.by_remote().0[OTHER].released(), 3);
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of addresses take it too long")]
    fn addresses_are_bounded() {
        let mut connections = Connections::default();
        for port in 1..=5000 {
            connections.count_released(Way::of(&dialed(port)).unwrap());
        }
        let rows = &connections.by_remote().0;
        assert!(rows.len() <= ROWS + 1);
        assert!(rows[OTHER].released() >= ROWS as u64);
        let released: u64 = rows.values().map(Tally::released).sum();
        assert_eq!(released, 5000, "none is forgotten");
    }

    #[test]
    fn a_socket_that_never_had_a_peer_has_no_row() {
        let mut connections = Connections::default();
        connections.count_open(&facts(1));
        assert!(connections.by_remote().top(9).is_empty());
    }
}
