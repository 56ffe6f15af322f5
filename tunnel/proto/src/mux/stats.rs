//! What a core shows of itself to who looks on.

use std::time::Duration;

use crate::mux::stream::{Phase, ReceivePhase, SendPhase, Stream};
use crate::mux::table::{Dialect, Table};
use crate::wire::frame::StreamId;

/// A session at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Streams that are alive or not yet released.
    pub streams: usize,
    /// Bytes that all streams together were given to send.
    pub written: u64,
    /// Bytes that were read of all streams together.
    pub read: u64,
    /// How long the last ping took, if one was timed.
    pub rtt: Option<Duration>,
    /// Some of the streams.
    pub sample: Vec<StreamStats>,
}

/// A stream at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStats {
    /// Which one.
    pub stream: StreamId,
    /// Where it is, in a few words.
    pub state: &'static str,
    /// Bytes that it was given to send.
    pub written: u64,
    /// Bytes that were read of it.
    pub read: u64,
}

impl<R: Dialect> Table<R> {
    pub(super) fn stats(&self, max: usize) -> Stats {
        let sample = self.streams.iter().take(max);
        Stats {
            streams: self.streams.len(),
            written: self.written,
            read: self.read,
            rtt: self.rtt,
            sample: sample.map(|(id, stream)| stream.stats(*id)).collect(),
        }
    }
}

impl<R> Stream<R> {
    fn stats(&self, stream: StreamId) -> StreamStats {
        StreamStats {
            stream,
            state: self.state(),
            written: self.send.total,
            read: self.receive.total,
        }
    }

    fn state(&self) -> &'static str {
        let we_finished = match self.send.phase {
            SendPhase::Open => false,
            SendPhase::Finishing
            | SendPhase::Aborting(_)
            | SendPhase::Finished
            | SendPhase::Delivered => true,
        };
        let peer_finished = match self.receive.phase {
            ReceivePhase::Open => false,
            ReceivePhase::Finished | ReceivePhase::Delivered => true,
        };
        match (self.phase, we_finished, peer_finished) {
            (Phase::Opening, ..) => "opening",
            (Phase::Ended(_), ..) => "ended",
            (Phase::Open, false, false) => "open",
            (Phase::Open, true, false) => "finished by us",
            (Phase::Open, false, true) => "finished by the peer",
            (Phase::Open, true, true) => "finished",
        }
    }
}
