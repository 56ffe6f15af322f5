//! Which stream sends next: control frames first, then data, one frame from each stream in turn. A
//! stream that had nothing to send goes before those that always have, once in each round, as in
//! RFC 8290 (section 4.2): a few bytes do not wait behind bulk.

use std::collections::VecDeque;

use crate::shrink;
use crate::wire::frame::StreamId;

/// Queues of stream identifiers. A stream is in each at most once, and in one of the two for data
/// (its own flags see to that), so each is bounded by the number of streams. All operations take
/// constant time.
#[derive(Debug, Default)]
pub struct Schedule {
    control: VecDeque<StreamId>,
    fresh: VecDeque<StreamId>,
    busy: VecDeque<StreamId>,
    /// Turns that busy streams have had.
    turns: u64,
    /// Fresh streams that went before a busy one since its last turn.
    overtaken: usize,
    starved: VecDeque<StreamId>,
}

/// So many fresh streams in a row may go before a busy one.
const OVERTAKE_MAX: usize = 32;

impl Schedule {
    /// Queues a stream that has control frames to send.
    pub fn push_control(&mut self, stream: StreamId) {
        self.control.push_back(stream);
    }

    /// Takes the next stream with control frames.
    pub fn pop_control(&mut self) -> Option<StreamId> {
        shrink::pop(&mut self.control)
    }

    /// Queues a stream that has data to send and had none since a turn of it, in which
    /// [`Self::round_end`] was `round`.
    pub fn push_data(&mut self, stream: StreamId, round: u64) {
        if self.turns >= round {
            self.fresh.push_back(stream);
        } else {
            self.push_again(stream);
        }
    }

    /// Queues a stream that had its turn and has more data to send, behind all others.
    pub fn push_again(&mut self, stream: StreamId) {
        self.busy.push_back(stream);
    }

    /// Returns when every stream that is busy now has had its turn: before that, one that has its
    /// turn now does not go first again.
    #[must_use]
    pub fn round_end(&self) -> u64 {
        self.turns.saturating_add(self.busy.len() as u64)
    }

    /// Takes the stream whose turn it is.
    pub fn pop_data(&mut self) -> Option<StreamId> {
        if (self.overtaken < OVERTAKE_MAX || self.busy.is_empty())
            && let Some(stream) = shrink::pop(&mut self.fresh)
        {
            self.overtaken += 1;
            return Some(stream);
        }
        self.overtaken = 0;
        self.turns = self.turns.saturating_add(1);
        shrink::pop(&mut self.busy)
    }

    /// Whether a stream waits for its turn to send data.
    #[must_use]
    pub fn has_data(&self) -> bool {
        !self.fresh.is_empty() || !self.busy.is_empty()
    }

    /// Queues a stream that waits for room in the session's send buffer.
    pub fn push_starved(&mut self, stream: StreamId) {
        self.starved.push_back(stream);
    }

    /// Takes the stream that has waited longest for room.
    pub fn pop_starved(&mut self) -> Option<StreamId> {
        shrink::pop(&mut self.starved)
    }

    /// Whether nothing waits to be sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.control.is_empty() && !self.has_data()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
