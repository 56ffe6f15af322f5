//! What both cores do with their streams in the same way.

use bytes::Bytes;

use super::error::{Ending, ReadError, Reason, SessionError, WriteError};
use super::table::{Dialect, Table};
use super::{Event, Mux, Stats};
use crate::shrink;
use crate::wire::frame::StreamId;

/// A core with a table of streams.
pub(super) trait Core {
    /// What its dialect adds to a stream.
    type Ext: Dialect;

    fn table(&self) -> &Table<Self::Ext>;
    fn table_mut(&mut self) -> &mut Table<Self::Ext>;
}

/// The streams of a session.
pub trait Streams {
    /// Returns the number of streams that are alive or not yet released.
    fn streams(&self) -> usize;

    /// Returns why the session is over, if it is.
    fn over(&self) -> Option<SessionError>;

    /// Returns how a stream ended, if it has. One that is gone has.
    fn ending(&self, id: StreamId) -> Option<Ending>;

    /// Whether a stream is accepted and has not ended. In remotedialer's dialect a stream that we
    /// opened is taken for accepted.
    fn is_open(&self, id: StreamId) -> bool;

    /// Returns how many bytes [`Self::write`] would take now, at least one.
    ///
    /// # Errors
    ///
    /// [`WriteError::Blocked`] promises an [`Event::Writable`]; the others are final.
    fn capacity(&mut self, id: StreamId) -> Result<usize, WriteError>;

    /// Queues bytes of `data` to be sent and returns how many were taken: from the front, and at
    /// least one unless `data` is empty.
    ///
    /// # Errors
    ///
    /// As [`Self::capacity`].
    fn write(&mut self, id: StreamId, data: Bytes) -> Result<usize, WriteError>;

    /// Finishes our half once everything that was written is sent. Finishing again changes nothing.
    /// Remotedialer's dialect has no half-close: the peer's half ends with ours, and what arrived
    /// before can still be read.
    ///
    /// # Errors
    ///
    /// The ending, when the stream is over.
    fn finish(&mut self, id: StreamId) -> Result<(), Ending>;

    /// Abandons both halves behind what was written: the reset goes out when the last queued byte
    /// has. What the peer sends in the meantime is dropped.
    fn abort(&mut self, id: StreamId, reason: Reason);

    /// Takes up to `max` bytes that arrived; `None` after the peer's finish. After a reset because
    /// the peer's socket broke ([`Reason::Aborted`]) what arrived before it comes first; after any
    /// other reset it is gone. The bytes count as held until [`Mux::consume`].
    ///
    /// # Errors
    ///
    /// [`ReadError::Blocked`] promises an [`Event::Readable`]; the other is final.
    fn read(&mut self, id: StreamId, max: usize) -> Result<Option<Bytes>, ReadError>;

    /// Gives the stream up: its user holds no handle and wants no events. A stream that has not
    /// ended is cancelled.
    fn release(&mut self, id: StreamId);

    /// Takes the next event.
    fn poll_event(&mut self) -> Option<Event>;

    /// Returns the figures of the session and of at most `max` of its streams.
    fn stats(&self, max: usize) -> Stats;
}

impl<C: Core + Mux> Streams for C {
    fn streams(&self) -> usize {
        self.table().streams.len()
    }

    fn over(&self) -> Option<SessionError> {
        self.table().over
    }

    fn ending(&self, id: StreamId) -> Option<Ending> {
        self.table().ending(id)
    }

    fn is_open(&self, id: StreamId) -> bool {
        self.table().is_open(id)
    }

    fn capacity(&mut self, id: StreamId) -> Result<usize, WriteError> {
        self.table_mut().capacity(id)
    }

    fn write(&mut self, id: StreamId, data: Bytes) -> Result<usize, WriteError> {
        self.table_mut().write(id, data)
    }

    fn finish(&mut self, id: StreamId) -> Result<(), Ending> {
        self.table_mut().finish(id)
    }

    fn abort(&mut self, id: StreamId, reason: Reason) {
        if !self.table_mut().abort(id, reason) {
            self.reset(id, reason);
        }
    }

    fn read(&mut self, id: StreamId, max: usize) -> Result<Option<Bytes>, ReadError> {
        self.table_mut().read(id, max)
    }

    fn release(&mut self, id: StreamId) {
        self.reset(id, Reason::Cancelled);
        self.table_mut().release(id);
    }

    fn poll_event(&mut self) -> Option<Event> {
        shrink::pop(&mut self.table_mut().events)
    }

    fn stats(&self, max: usize) -> Stats {
        self.table().stats(max)
    }
}
