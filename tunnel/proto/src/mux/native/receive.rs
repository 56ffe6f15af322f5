//! What a frame from the peer does. Frames for streams that are unknown or over are late, and
//! dropped.

use bytes::Bytes;

use crate::Time;
use crate::mux::error::{By, Ending, Reason, SessionError};
use crate::mux::native::Mux;
use crate::mux::native::halves::{Halves, Stream};
use crate::mux::native::window::{Overrun, ReceiveWindow};
use crate::mux::stream::{Phase, ReceivePhase, SendPhase};
use crate::mux::{Event, Mux as _, Streams as _};
use crate::wire::frame::{Frame, StreamId, TARGET_MAX};

impl Mux {
    /// Takes a frame from the peer.
    ///
    /// # Errors
    ///
    /// [`SessionError`] when the session is over now, with every stream of it; the caller lets the
    /// link go.
    pub fn handle_frame(&mut self, now: Time, frame: Frame) -> Result<(), SessionError> {
        if let Some(error) = self.table.over {
            return Err(error);
        }
        self.last_received = self.last_received.max(now);
        self.unanswered = None;
        match frame {
            Frame::Open {
                stream,
                window,
                target,
            } => self.recv_open(stream, window, target),
            Frame::Accept { stream, window } => self.recv_accept(stream, window),
            Frame::Data { stream, data } => self.recv_data(stream, data),
            Frame::Window { stream, credit } => self.recv_window(stream, credit),
            Frame::Finish { stream } => self.recv_finish(stream),
            Frame::Delivered { stream } => self.recv_delivered(stream),
            Frame::Reset { stream, reason } => {
                self.end_stream(stream, Ending::Reset(reason, By::Peer))
            }
            Frame::Ping { nonce } => self.pong = Some(nonce),
            Frame::Pong { nonce } => self.recv_pong(now, nonce),
            Frame::GoAway { reason } => self.recv_go_away(reason),
        }
        self.table.over.map_or(Ok(()), Err)
    }

    fn recv_pong(&mut self, now: Time, nonce: u64) {
        if nonce == self.pings && nonce > 0 {
            self.table.rtt = Some(now.saturating_sub(self.last_ping));
            self.rtt_is_new = true;
        }
    }

    fn recv_open(&mut self, id: StreamId, window: u32, target: Bytes) {
        if id.opener() == self.side || id.number() <= self.peer_highest {
            self.fail(SessionError::BadStreamId, By::Us);
            return;
        }
        self.peer_highest = id.number();
        let refusal = if self.draining {
            Some(Reason::Draining)
        } else if self.table.streams.len() >= self.config.max_streams {
            Some(Reason::Busy)
        } else if target.len() > TARGET_MAX {
            Some(Reason::Protocol)
        } else {
            None
        };
        if let Some(reason) = refusal {
            if self.refusals.len() >= self.config.refusals_max {
                self.fail(SessionError::OpenFlood, By::Us);
            } else {
                self.refusals.push_back((id, reason));
            }
            return;
        }
        let mut stream = Stream::new(Halves::new(ReceiveWindow::open(
            &self.config,
            &mut self.budget,
        )));
        stream.ext.send.give(window);
        self.table.streams.insert(id, stream);
        self.table
            .events
            .push_back(Event::Opened { stream: id, target });
    }

    fn recv_accept(&mut self, id: StreamId, window: u32) {
        if id.opener() != self.side {
            return;
        }
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        if stream.phase != Phase::Opening {
            return;
        }
        stream.phase = Phase::Open;
        stream.ext.send.give(window);
        self.table.disarm(id);
        self.table.events.push_back(Event::Accepted { stream: id });
        self.table.wake_writer(id);
        self.table.queue_data(id);
    }

    fn recv_data(&mut self, id: StreamId, data: Bytes) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        match (stream.phase, stream.receive.phase) {
            (Phase::Ended(_), _) => return,
            (Phase::Opening, _)
            | (Phase::Open, ReceivePhase::Finished | ReceivePhase::Delivered) => {
                self.reset(id, Reason::Protocol);
                return;
            }
            (Phase::Open, ReceivePhase::Open) => {}
        }
        if let Err(Overrun) = stream.ext.receive.recv(data.len()) {
            self.reset(id, Reason::Overrun);
            return;
        }
        if stream.released {
            self.recv_unwanted(id);
            return;
        }
        stream.receive.queue.push(data);
        self.table.wake_reader(id);
    }

    fn recv_window(&mut self, id: StreamId, credit: u32) {
        if let Some(stream) = self.table.streams.get_mut(&id)
            && stream.phase == Phase::Open
        {
            stream.ext.send.give(credit);
            self.table.wake_writer(id);
        }
    }

    fn recv_finish(&mut self, id: StreamId) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        match (stream.phase, stream.receive.phase) {
            (Phase::Ended(_), _) => {}
            (Phase::Open, ReceivePhase::Open) => {
                stream.receive.phase = ReceivePhase::Finished;
                if stream.released {
                    self.deliver(id);
                } else {
                    self.table.wake_reader(id);
                }
            }
            (Phase::Opening, _)
            | (Phase::Open, ReceivePhase::Finished | ReceivePhase::Delivered) => {
                self.reset(id, Reason::Protocol);
            }
        }
    }

    fn recv_delivered(&mut self, id: StreamId) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        match (stream.phase, stream.send.phase) {
            (Phase::Ended(_), _) => {}
            (Phase::Open, SendPhase::Finished) => {
                stream.send.phase = SendPhase::Delivered;
                if stream.is_complete() {
                    self.end_stream(id, Ending::Finished);
                }
            }
            (Phase::Opening, _)
            | (
                Phase::Open,
                SendPhase::Open
                | SendPhase::Finishing
                | SendPhase::Aborting(_)
                | SendPhase::Delivered,
            ) => {
                self.reset(id, Reason::Protocol);
            }
        }
    }

    fn recv_go_away(&mut self, reason: Reason) {
        match reason {
            Reason::Draining => {
                if !self.peer_draining {
                    self.peer_draining = true;
                    self.table.events.push_back(Event::PeerDraining);
                }
            }
            Reason::Done
            | Reason::Cancelled
            | Reason::Aborted
            | Reason::Refused
            | Reason::Unreachable
            | Reason::TimedOut
            | Reason::Denied
            | Reason::Unresolved
            | Reason::Busy
            | Reason::SessionOver
            | Reason::Replaced
            | Reason::Protocol
            | Reason::Overrun => self.fail(SessionError::Ended(reason), By::Peer),
        }
    }

    /// Bytes arrived for a stream whose user is gone.
    pub(crate) fn recv_unwanted(&mut self, id: StreamId) {
        self.abort(id, Reason::Cancelled);
    }
}
