//! Sessions and streams as JSON. Identifiers are strings: JSON's numbers lose bits of theirs.

use std::time::Duration;

use serde::Serialize;
use tunnel_proto::wire::handshake::Party;
use tunnel_proto::wire::{Dialect, native};

use crate::session::Snapshot;

/// A session, and who is at its other end.
#[derive(Clone, Debug)]
pub(crate) struct SessionView {
    pub(crate) party: Party,
    /// The name of the agent or the peer.
    pub(crate) name: String,
    pub(crate) link: Option<String>,
    /// Where the other end is.
    pub(crate) address: String,
    pub(crate) snapshot: Snapshot,
}

#[derive(Debug, Serialize)]
pub(super) struct Sessions {
    pub(super) sessions: Vec<Session>,
}

#[derive(Debug, Serialize)]
pub(super) struct Session {
    pub(super) session: String,
    pub(super) party: &'static str,
    pub(super) name: String,
    pub(super) link: Option<String>,
    pub(super) dialect: &'static str,
    pub(super) address: String,
    pub(super) age_seconds: f64,
    pub(super) streams: usize,
    pub(super) to_peer_bytes: u64,
    pub(super) from_peer_bytes: u64,
    pub(super) rtt_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Streams {
    /// How many there are, listed or not.
    pub(super) total: usize,
    pub(super) streams: Vec<Stream>,
}

#[derive(Debug, Serialize)]
pub(super) struct Stream {
    pub(super) session: String,
    pub(super) stream: String,
    pub(super) name: String,
    pub(super) target: String,
    pub(super) state: &'static str,
    pub(super) age_seconds: f64,
    pub(super) to_peer_bytes: u64,
    pub(super) from_peer_bytes: u64,
}

impl Sessions {
    pub(super) fn of(shown: Vec<SessionView>) -> Self {
        Self {
            sessions: shown.into_iter().map(Session::of).collect(),
        }
    }
}

impl Session {
    fn of(shown: SessionView) -> Self {
        let snapshot = shown.snapshot;
        Self {
            session: snapshot.session.to_string(),
            party: match shown.party {
                Party::Agent => "agent",
                Party::Peer => "peer",
                Party::Server => "server",
            },
            name: shown.name,
            link: shown.link,
            dialect: match snapshot.dialect {
                Dialect::Native => native::SUBPROTOCOL,
                Dialect::Remotedialer => "remotedialer",
            },
            address: shown.address,
            age_seconds: seconds(snapshot.age),
            streams: snapshot.streams,
            to_peer_bytes: snapshot.to_peer,
            from_peer_bytes: snapshot.from_peer,
            rtt_seconds: snapshot.rtt.map(|rtt| rtt.as_secs_f64()),
        }
    }
}

impl Streams {
    pub(super) fn of(shown: Vec<SessionView>) -> Self {
        let total = shown.iter().map(|shown| shown.snapshot.streams).sum();
        let streams = shown.into_iter().flat_map(|shown| {
            let (session, name) = (shown.snapshot.session.to_string(), shown.name);
            let streams = shown.snapshot.some.into_iter();
            streams.map(move |stream| Stream {
                session: session.clone(),
                stream: stream.stream.to_string(),
                name: name.clone(),
                target: stream.target,
                state: stream.state,
                age_seconds: seconds(stream.age),
                to_peer_bytes: stream.to_peer,
                from_peer_bytes: stream.from_peer,
            })
        });
        Self {
            total,
            streams: streams.collect(),
        }
    }
}

/// Rounded to milliseconds.
fn seconds(age: Duration) -> f64 {
    Duration::from_millis(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)).as_secs_f64()
}
