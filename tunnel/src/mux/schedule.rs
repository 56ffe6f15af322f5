//! Which stream sends next: control frames first, then data, one frame from each stream in turn.

use std::collections::VecDeque;

use super::frame::StreamId;

/// Three queues of stream identifiers. A stream is in each at most once (its own flags see to that), so each is bounded
/// by the number of streams. All operations take constant time.
#[derive(Debug, Default)]
pub struct Schedule {
    control: VecDeque<StreamId>,
    data: VecDeque<StreamId>,
    starved: VecDeque<StreamId>,
}

impl Schedule {
    /// Queues a stream that has control frames to send.
    pub fn push_control(&mut self, stream: StreamId) {
        self.control.push_back(stream);
    }

    /// Takes the next stream with control frames.
    pub fn pop_control(&mut self) -> Option<StreamId> {
        self.control.pop_front()
    }

    /// Queues a stream that has data to send, behind all others.
    pub fn push_data(&mut self, stream: StreamId) {
        self.data.push_back(stream);
    }

    /// Takes the stream whose turn it is.
    pub fn pop_data(&mut self) -> Option<StreamId> {
        self.data.pop_front()
    }

    /// Whether a stream has data to send.
    #[must_use]
    pub fn has_data(&self) -> bool {
        !self.data.is_empty()
    }

    /// Queues a stream that waits for room in the session's send buffer.
    pub fn push_starved(&mut self, stream: StreamId) {
        self.starved.push_back(stream);
    }

    /// Takes the stream that has waited longest for room.
    pub fn pop_starved(&mut self) -> Option<StreamId> {
        self.starved.pop_front()
    }

    /// Whether nothing waits to be sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.control.is_empty() && self.data.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
