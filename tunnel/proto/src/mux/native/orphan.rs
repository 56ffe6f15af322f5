//! Streams that go on without their user: it finished its half and let go, as one does with a socket.

use crate::Time;
use crate::mux::error::Reason;
use crate::mux::native::Mux;
use crate::mux::stream::{Phase, ReceivePhase, SendPhase, Stream};
use crate::wire::frame::StreamId;

impl Mux {
    /// Lets go of a stream: its user holds no handle and wants no events. One that its user finished goes on: what was written still
    /// goes out, and the peer's half ends with its finish; bytes that the peer sends, and [`Config::parting`](crate::mux::native::Config::parting),
    /// abandon it. Any other is cancelled, as by [`Self::release`].
    pub fn leave(&mut self, now: Time, id: StreamId) {
        let Some(stream) = self.table.streams.get_mut(&id).filter(|it| it.may_leave()) else {
            self.release(id);
            return;
        };
        stream.released = true;
        let finished = stream.receive.phase == ReceivePhase::Finished;
        let parting = self.config.parting;
        self.table.arm(id, now.saturating_add(parting));
        if finished {
            self.deliver(id);
        }
    }

    /// Bytes arrived for a stream whose user is gone.
    pub(crate) fn recv_unwanted(&mut self, id: StreamId) {
        self.abort(id, Reason::Cancelled);
    }
}

impl<R> Stream<R> {
    /// Whether the stream can come to its end without its user: that finished it and has read what arrived.
    pub(crate) fn may_leave(&self) -> bool {
        let finished = match self.send.phase {
            SendPhase::Finishing | SendPhase::Finished | SendPhase::Delivered => true,
            SendPhase::Open | SendPhase::Aborting(_) => false,
        };
        self.phase == Phase::Open && finished && self.receive.queue.is_empty()
    }

    /// Whether the stream goes on without its user.
    pub(crate) const fn is_left(&self) -> bool {
        self.released && self.ending().is_none()
    }
}
