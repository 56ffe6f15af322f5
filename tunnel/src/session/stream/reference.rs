//! What all handles of one stream share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

use bytes::Bytes;
use tunnel_proto::mux::{Ending, OpenError, ReadError, Reason, WriteError};
use tunnel_proto::wire::frame::StreamId;

use crate::io::socket::Owner;
use crate::session::{Shared, register};

/// The one thing that all handles of a stream share. When it goes, the stream is released.
pub(super) struct StreamRef {
    pub(super) shared: Arc<Shared>,
    pub(super) id: StreamId,
    /// The reader is where the bytes belong, and whoever finishes and releases it is done.
    pub(super) is_connection: AtomicBool,
}

impl Drop for StreamRef {
    fn drop(&mut self) {
        if *self.is_connection.get_mut() {
            self.shared.detach(self.id);
        } else {
            self.shared.release(self.id);
        }
    }
}

impl StreamRef {
    pub(super) fn owner(&self) -> Owner {
        self.shared.stream_owner(self.id)
    }

    pub(super) fn ending(&self) -> Option<Ending> {
        self.shared.lock().mux.ending(self.id)
    }

    pub(super) fn reset(&self, reason: Reason) {
        self.shared.with(|mux, _| mux.reset(self.id, reason));
    }

    pub(super) fn poll_capacity(&self, cx: &Context<'_>) -> Poll<Result<usize, WriteError>> {
        self.shared.with(|mux, slots| match mux.capacity(self.id) {
            Err(WriteError::Blocked) => {
                if let Some(slot) = slots.get_mut(&self.id) {
                    register(&mut slot.writer, cx);
                }
                Poll::Pending
            }
            done => Poll::Ready(done),
        })
    }

    pub(super) fn poll_read(
        &self,
        cx: &Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, ReadError>> {
        self.shared.with(|mux, slots| match mux.read(self.id, max) {
            Err(ReadError::Blocked) => {
                if let Some(slot) = slots.get_mut(&self.id) {
                    register(&mut slot.reader, cx);
                }
                Poll::Pending
            }
            done => {
                if let Ok(Some(data)) = &done {
                    self.carried(data.len());
                }
                Poll::Ready(done)
            }
        })
    }

    pub(super) fn poll_ended(&self, cx: &Context<'_>) -> Poll<Ending> {
        let mut state = self.shared.lock();
        match state.mux.ending(self.id) {
            Some(ending) => Poll::Ready(ending),
            None => {
                if let Some(slot) = state.slots.get_mut(&self.id) {
                    register(&mut slot.ended, cx);
                }
                Poll::Pending
            }
        }
    }

    pub(super) fn poll_opened(&self, cx: &Context<'_>) -> Poll<Result<(), OpenError>> {
        let mut state = self.shared.lock();
        if let Some(ending) = state.mux.ending(self.id) {
            return Poll::Ready(Err(OpenError::Refused(match ending {
                Ending::Finished => Reason::Done,
                Ending::Reset(reason, _) => reason,
            })));
        }
        if state.mux.is_open(self.id) {
            return Poll::Ready(Ok(()));
        }
        if let Some(slot) = state.slots.get_mut(&self.id) {
            register(&mut slot.opened, cx);
        }
        Poll::Pending
    }

    pub(super) fn write(&self, data: Bytes) -> Result<usize, WriteError> {
        let taken = self.shared.with(|mux, _| mux.write(self.id, data))?;
        self.shared.metrics.sent(taken);
        self.carried(taken);
        Ok(taken)
    }

    pub(super) fn deliver(&self) {
        self.shared.with(|mux, _| mux.deliver(self.id));
    }

    pub(super) fn consume(&self, length: usize) {
        self.shared.metrics.received(length);
        self.shared.with(|mux, _| mux.consume(self.id, length));
    }
}
