//! What a session shows of itself to who looks on.

use std::time::Duration;

use tunnel_proto::wire::Dialect;

use crate::session::Session;

/// A session at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The session's identifier.
    pub session: u64,
    /// How its ends talk.
    pub dialect: Dialect,
    /// How long it has lived.
    pub age: Duration,
    /// Streams that are alive or whose handles are.
    pub streams: usize,
    /// Payload bytes that were given to it for the peer.
    pub to_peer: u64,
    /// Payload bytes that came from the peer and were taken.
    pub from_peer: u64,
    /// How long the last ping took to be answered. Pings go over idle links only.
    pub rtt: Option<Duration>,
    /// Some of its streams, by their numbers.
    pub some: Vec<StreamSnapshot>,
}

/// A stream at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSnapshot {
    /// The stream's number.
    pub stream: u64,
    /// Where it goes, as its opener wrote it: anything, if that was the peer.
    pub target: String,
    /// How long it has lived.
    pub age: Duration,
    /// Payload bytes that were given to it for the peer.
    pub to_peer: u64,
    /// Payload bytes that came from the peer and were taken.
    pub from_peer: u64,
    /// Where it is, in a few words.
    pub state: &'static str,
}

impl Session {
    /// Looks at the session and at most `streams_max` of its streams; if there are more, any of them.
    #[must_use]
    pub fn snapshot(&self, streams_max: usize) -> Snapshot {
        let now = self.shared.clock.now();
        let state = self.shared.lock();
        let stats = state.mux.stats(streams_max);
        let stream = |stats: tunnel_proto::mux::StreamStats| {
            let slot = state.slots.get(&stats.stream)?;
            Some(StreamSnapshot {
                stream: stats.stream.number(),
                target: String::from_utf8_lossy(&slot.target).into_owned(),
                age: now.saturating_sub(slot.began),
                to_peer: stats.written,
                from_peer: stats.read,
                state: stats.state,
            })
        };
        let mut some: Vec<_> = stats.sample.into_iter().filter_map(stream).collect();
        some.sort_unstable_by_key(|stream| stream.stream);
        Snapshot {
            session: self.id(),
            dialect: state.mux.dialect(),
            age: now.saturating_sub(self.shared.began),
            streams: stats.streams,
            to_peer: stats.written,
            from_peer: stats.read,
            rtt: stats.rtt,
            some,
        }
    }
}
