//! What a session shows of itself. Its JSON form is that of the admin port: identifiers are
//! strings, since JSON's numbers lose bits of theirs.

use std::time::Duration;

use serde::{Serialize, Serializer};
use tunnel_proto::mux;
use tunnel_proto::wire::Dialect;

use crate::session::Session;

/// A session at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionStats {
    /// The session's identifier.
    #[serde(serialize_with = "as_text")]
    pub session: u64,
    /// How its ends talk.
    #[serde(serialize_with = "dialect_name")]
    pub dialect: Dialect,
    /// Whether it is fit for new streams: `live`, `overdue` or `draining`.
    pub health: &'static str,
    /// How long it has lived.
    #[serde(rename = "age_seconds", serialize_with = "as_seconds")]
    pub age: Duration,
    /// Streams that are alive or whose handles are.
    pub streams: usize,
    /// Payload bytes that were given to it for the peer.
    #[serde(rename = "to_peer_bytes")]
    pub to_peer: u64,
    /// Payload bytes that came from the peer and were taken.
    #[serde(rename = "from_peer_bytes")]
    pub from_peer: u64,
    /// How long the last ping took to be answered. Pings go over idle links only.
    #[serde(rename = "rtt_seconds", serialize_with = "as_exact_seconds")]
    pub rtt: Option<Duration>,
    /// Some of its streams, by their numbers.
    #[serde(skip)]
    pub sample: Vec<StreamStats>,
}

/// A stream at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// The stream's number.
    #[serde(serialize_with = "as_text")]
    pub stream: u64,
    /// Where it goes, as its opener wrote it: anything, if that was the peer.
    pub target: String,
    /// Where it is, in a few words.
    pub state: &'static str,
    /// How long it has lived.
    #[serde(rename = "age_seconds", serialize_with = "as_seconds")]
    pub age: Duration,
    /// Payload bytes that were given to it for the peer.
    #[serde(rename = "to_peer_bytes")]
    pub to_peer: u64,
    /// Payload bytes that came from the peer and were taken.
    #[serde(rename = "from_peer_bytes")]
    pub from_peer: u64,
}

impl Session {
    /// Returns the figures of the session and of at most `streams_max` of its streams; if there are
    /// more, of any of them.
    #[must_use]
    pub fn stats(&self, streams_max: usize) -> SessionStats {
        let now = self.shared.clock.now();
        let state = self.shared.lock();
        let stats = state.mux.stats(streams_max);
        let stream = |stats: mux::StreamStats| {
            let slot = state.slots.get(&stats.stream)?;
            Some(StreamStats {
                stream: stats.stream.number(),
                target: String::from_utf8_lossy(&slot.target).into_owned(),
                state: stats.state,
                age: now.saturating_sub(slot.began),
                to_peer: stats.written,
                from_peer: stats.read,
            })
        };
        let mut sample: Vec<_> = stats.sample.into_iter().filter_map(stream).collect();
        sample.sort_unstable_by_key(|stream| stream.stream);
        SessionStats {
            session: self.id(),
            dialect: state.mux.dialect(),
            health: state.mux.health(now).name(),
            age: now.saturating_sub(self.shared.began),
            streams: stats.streams,
            to_peer: stats.written,
            from_peer: stats.read,
            rtt: stats.rtt,
            sample,
        }
    }
}

/// Writes an identifier as a string.
pub(crate) fn as_text<S: Serializer>(id: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(id)
}

fn dialect_name<S: Serializer>(dialect: &Dialect, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(dialect.name())
}

/// Writes an age in seconds, to milliseconds.
fn as_seconds<S: Serializer>(age: &Duration, to: S) -> Result<S::Ok, S::Error> {
    let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    to.serialize_f64(Duration::from_millis(millis).as_secs_f64())
}

fn as_exact_seconds<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(to)
}
