//! The ten counters of rancher/remotedialer, under its names and labels.
//!
//! Unlike the original, a series of removals is created together with its series of additions, and
//! labels are bounded: what is beyond a cap is counted as [`OTHER`].

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use prometheus::{IntCounter, IntCounterVec, Registry};
use tunnel_proto::target::Target;

use crate::metrics::{Transmitted, counters};

/// The most values of `clientkey` besides [`OTHER`].
const CLIENTS_MAX: usize = 200;

/// The most triples of `clientkey`, `proto` and `addr`, besides those with [`OTHER`] as the
/// address.
const CONNECTIONS_MAX: usize = 1000;

/// The value for everything beyond the cap. No agent has this name.
const OTHER: &str = "~other";

#[derive(Debug)]
pub(super) struct Counters {
    add_sessions: IntCounterVec,
    remove_sessions: IntCounterVec,
    add_connections: IntCounterVec,
    remove_connections: IntCounterVec,
    transmit: IntCounterVec,
    transmit_errors: IntCounterVec,
    receive: IntCounterVec,
    peer_attempts: IntCounterVec,
    peer_connected: IntCounterVec,
    peer_disconnected: IntCounterVec,
    clients: Capped<String>,
    connections: Capped<(String, &'static str, String)>,
}

impl Counters {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let name = format!("session_server_total_{name}");
            counters(registry, &name, help, labels)
        };
        let session = ["clientkey", "peer"];
        let connection = ["clientkey", "proto", "addr"];
        Ok(Self {
            add_sessions: counters("add_websocket_session", "Sessions begun.", &session)?,
            remove_sessions: counters(
                "remove_websocket_session",
                "Sessions that ended.",
                &session,
            )?,
            add_connections: counters("add_connections", "Streams opened.", &connection)?,
            remove_connections: counters("remove_connections", "Streams that ended.", &connection)?,
            transmit: counters(
                "transmit_bytes",
                "Bytes sent in messages with payload, message headers included.",
                &["clientkey"],
            )?,
            transmit_errors: counters(
                "transmit_error_bytes",
                "Bytes sent in messages that end a stream with an error, message headers included.",
                &["clientkey"],
            )?,
            receive: counters(
                "receive_bytes",
                "Payload bytes received and passed on.",
                &["clientkey"],
            )?,
            peer_attempts: counters("peer_ws_attempt", "Peers dialed.", &["peer"])?,
            peer_connected: counters("peer_ws_connected", "Links to peers begun.", &["peer"])?,
            peer_disconnected: counters(
                "peer_ws_disconnected",
                "Links to peers that ended.",
                &["peer"],
            )?,
            clients: Capped::new(CLIENTS_MAX),
            connections: Capped::new(CONNECTIONS_MAX),
        })
    }

    pub(super) fn session(&self, client: &str, peer: bool) -> Added {
        let client = self.client(client);
        let labels = [client, if peer { "true" } else { "false" }];
        Added::count(&self.add_sessions, &self.remove_sessions, &labels)
    }

    pub(super) fn connection(&self, client: &str, target: &Target) -> Added {
        let (client, address) = (self.client(client), target.authority());
        let connection = (client.to_owned(), target.proto(), address.clone());
        let address = if self.connections.takes(connection) {
            address.as_str()
        } else {
            OTHER
        };
        let labels = [client, target.proto(), address];
        Added::count(&self.add_connections, &self.remove_connections, &labels)
    }

    pub(super) fn bytes(&self, client: &str) -> ClientBytes {
        let client = [self.client(client)];
        ClientBytes {
            transmit: self.transmit.with_label_values(&client),
            transmit_errors: self.transmit_errors.with_label_values(&client),
            receive: self.receive.with_label_values(&client),
        }
    }

    pub(super) fn peer(&self, id: &str) -> PeerCounters {
        PeerCounters {
            attempts: self.peer_attempts.with_label_values(&[id]),
            connected: self.peer_connected.with_label_values(&[id]),
            disconnected: self.peer_disconnected.with_label_values(&[id]),
        }
    }

    fn client<'a>(&self, client: &'a str) -> &'a str {
        if self.clients.takes(client.to_owned()) {
            client
        } else {
            OTHER
        }
    }
}

/// Something that was counted as added. It can be counted as removed.
#[derive(Debug)]
pub(super) struct Added {
    remove: IntCounter,
}

impl Added {
    fn count(add: &IntCounterVec, remove: &IntCounterVec, labels: &[&str]) -> Self {
        let remove = remove.with_label_values(labels);
        add.with_label_values(labels).inc();
        Self { remove }
    }

    pub(super) fn removed(&self) {
        self.remove.inc();
    }
}

#[derive(Debug)]
pub(super) struct ClientBytes {
    transmit: IntCounter,
    transmit_errors: IntCounter,
    receive: IntCounter,
}

impl ClientBytes {
    pub(super) fn transmitted(&self, transmitted: Transmitted) {
        self.transmit.inc_by(transmitted.data as u64);
        self.transmit_errors.inc_by(transmitted.errors as u64);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.receive.inc_by(bytes as u64);
    }
}

#[derive(Debug)]
pub(super) struct PeerCounters {
    pub(super) attempts: IntCounter,
    pub(super) connected: IntCounter,
    pub(super) disconnected: IntCounter,
}

/// A set of the first values, up to a cap.
#[derive(Debug)]
struct Capped<T> {
    max: usize,
    seen: Mutex<HashSet<T>>,
}

impl<T: Eq + Hash> Capped<T> {
    fn new(max: usize) -> Self {
        let seen = Mutex::default();
        Self { max, seen }
    }

    /// Whether `value` has a series of its own.
    fn takes(&self, value: T) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= self.max {
            return seen.contains(&value);
        }
        seen.insert(value);
        true
    }
}

#[cfg(test)]
mod tests {
    use tunnel_proto::target::Target;
    use tunnel_proto::wire::handshake::Party;

    use super::*;
    use crate::metrics::{Compat, Metrics, Transmitted};

    fn lines(text: &str, name: &str) -> Vec<String> {
        let prefix = format!("session_server_total_{name}{{");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn the_ten_have_their_names_and_labels_and_are_there_only_when_asked_for() {
        let exercise = |metrics: &std::sync::Arc<Metrics>| {
            let session = metrics.session_began("web", Party::Agent);
            let stream = session.stream_began(&"tcp/127.0.0.1:6080".parse().unwrap());
            session.received(3);
            session.transmitted(Transmitted { data: 8, errors: 5 });
            let peer = metrics.peer("east");
            peer.attempted();
            peer.connected();
            let running = metrics.text().unwrap();
            peer.disconnected();
            drop((stream, session));
            (running, metrics.text().unwrap())
        };
        let metrics = Metrics::new(Some(Compat::Remotedialer)).unwrap();
        let (running, over) = exercise(&metrics);
        let connection = "addr=\"127.0.0.1:6080\",clientkey=\"web\",proto=\"tcp\"}";
        let session = "clientkey=\"web\",peer=\"false\"}";
        for (name, labels, during, after) in [
            ("add_websocket_session", session, 1, 1),
            ("remove_websocket_session", session, 0, 1),
            ("add_connections", connection, 1, 1),
            ("remove_connections", connection, 0, 1),
            ("transmit_bytes", "clientkey=\"web\"}", 8, 8),
            ("transmit_error_bytes", "clientkey=\"web\"}", 5, 5),
            ("receive_bytes", "clientkey=\"web\"}", 3, 3),
            ("peer_ws_attempt", "peer=\"east\"}", 1, 1),
            ("peer_ws_connected", "peer=\"east\"}", 1, 1),
            ("peer_ws_disconnected", "peer=\"east\"}", 0, 1),
        ] {
            for (text, value) in [(&running, during), (&over, after)] {
                assert_eq!(lines(text, name), [format!("{labels} {value}")], "{name}");
            }
        }
        assert!(over.contains("watertight_sessions 0") && over.contains("watertight_streams 0"));
        let (running, _) = exercise(&Metrics::new(None).unwrap());
        assert!(!running.contains("session_server") && running.contains("watertight_streams 1"));
    }

    #[test]
    fn a_session_is_counted_by_who_is_at_its_other_end() {
        let metrics = Metrics::new(Some(Compat::Remotedialer)).unwrap();
        let _sessions = [Party::Peer, Party::Server].map(|party| metrics.session_began("a", party));
        let text = metrics.text().unwrap();
        let expected = ["clientkey=\"a\",peer=\"true\"} 1"];
        assert_eq!(lines(&text, "add_websocket_session"), expected);
        assert!(text.contains("watertight_sessions 2"));
    }

    #[test]
    fn series_are_bounded_whatever_names_and_targets_come() {
        let metrics = Metrics::new(Some(Compat::Remotedialer)).unwrap();
        for name in 0..300 {
            let session = metrics.session_began(&format!("agent-{name}"), Party::Agent);
            for port in 1..=10 {
                let target = Target::tcp("127.0.0.1", Some(port)).unwrap();
                let _ = session.stream_began(&target);
            }
        }
        let text = metrics.text().unwrap();
        for end in ["add", "remove"] {
            let sessions = lines(&text, &format!("{end}_websocket_session"));
            assert_eq!(sessions.len(), CLIENTS_MAX + 1);
            assert!(sessions.contains(&"clientkey=\"~other\",peer=\"false\"} 100".to_owned()));
            let connections = lines(&text, &format!("{end}_connections"));
            // Each client that came after the thousandth triple has one series for all its
            // addresses.
            assert_eq!(connections.len(), CONNECTIONS_MAX + 101);
            let other = "addr=\"~other\",clientkey=\"~other\",proto=\"tcp\"} 1000".to_owned();
            assert!(connections.contains(&other), "{connections:?}");
        }
        assert_eq!(lines(&text, "receive_bytes").len(), CLIENTS_MAX + 1);
    }
}
