//! What a message from the peer does.

use bytes::Bytes;

use crate::Time;
use crate::mux::error::{By, Ending, Reason, SessionError};
use crate::mux::remotedialer::stream::{Stream, stream_of};
use crate::mux::remotedialer::{Answer, Mux, text};
use crate::mux::stream::{Phase, ReceivePhase, SendPhase};
use crate::mux::{Event, Mux as _};
use crate::wire::frame::{Side, StreamId};
use crate::wire::remotedialer::{ADDRESS_MAX, Body, EOF, Message};

impl Mux {
    /// Takes a message from the peer.
    ///
    /// # Errors
    ///
    /// [`SessionError`] when the session is over now, with every stream of it; the caller lets the
    /// link go.
    pub fn handle_message(&mut self, now: Time, message: Message) -> Result<(), SessionError> {
        if let Some(error) = self.table.over {
            return Err(error);
        }
        self.last_received = self.last_received.max(now);
        self.unanswered = None;
        let Message { connection, body } = message;
        match body {
            Body::Data(data) => self.recv_data(connection, data),
            Body::Connect(address) => self.recv_connect(connection, address),
            Body::Error(text) => {
                if let Some(id) = stream_of(connection) {
                    self.recv_error(now, id, &text);
                }
            }
            Body::Pause => self.recv_pause(connection, true),
            Body::Resume => self.recv_pause(connection, false),
            Body::SyncConnections(connections) => self.recv_sync(connections),
            Body::AddClient(client) => self.recv_client(&client, true),
            Body::RemoveClient(client) => self.recv_client(&client, false),
            // What later versions say.
            Body::Unknown(_) => {}
        }
        self.table.over.map_or(Ok(()), Err)
    }

    fn recv_connect(&mut self, connection: i64, address: Bytes) {
        let Some(id) = stream_of(connection) else {
            self.answer(connection, Answer::Because(Reason::Protocol));
            return;
        };
        let refusal = match self.side {
            Side::Server => Some(Reason::Denied),
            Side::Agent if self.draining => Some(Reason::Draining),
            Side::Agent if self.table.streams.len() >= self.config.max_streams => {
                Some(Reason::Busy)
            }
            Side::Agent if address.len() > ADDRESS_MAX => Some(Reason::Protocol),
            Side::Agent => None,
        };
        if let Some(reason) = refusal {
            // At the server the number is one of ours: an error would end that stream at the peer,
            // which asked for it.
            self.answer(connection, Answer::Because(reason));
            return;
        }
        if self.table.streams.contains_key(&id) {
            self.fail(SessionError::BadStreamId, By::Us);
            return;
        }
        self.table.streams.insert(id, Stream::incoming());
        self.table.events.push_back(Event::Opened {
            stream: id,
            target: address,
        });
    }

    fn recv_data(&mut self, connection: i64, data: Bytes) {
        let found =
            stream_of(connection).and_then(|id| Some((id, self.table.streams.get_mut(&id)?)));
        let Some((id, stream)) = found else {
            self.answer(connection, Answer::NotFound);
            return;
        };
        stream.mark_known();
        // What was on its way when the connection ended is late.
        if stream.ending().is_some() || stream.receive.phase != ReceivePhase::Open {
            return;
        }
        // Its user is gone, and the end is on its way.
        if stream.released {
            return;
        }
        stream.ext.held += data.len();
        self.held += data.len();
        let held = stream.ext.held;
        let overrun = held > self.config.stream_cap
            || (self.held > self.config.session_cap && held > self.config.pause_floor);
        if overrun {
            self.reset(id, Reason::Overrun);
            return;
        }
        stream.receive.queue.push(data);
        self.table.wake_reader(id);
        self.regulate(id);
    }

    fn recv_error(&mut self, now: Time, id: StreamId, text: &[u8]) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        if stream.ending().is_some() {
            return;
        }
        if text != EOF {
            self.end_stream(id, Ending::Reset(text::reason(text), By::Peer));
            return;
        }
        match (stream.phase, stream.send.phase) {
            (Phase::Opening, _) if stream.receive.queue.is_empty() => {
                self.end_stream(id, Ending::Reset(Reason::Cancelled, By::Peer));
            }
            (_, SendPhase::Aborting(reason)) => {
                self.end_stream(id, Ending::Reset(reason, By::Us));
            }
            (_, SendPhase::Open | SendPhase::Finishing) => {
                let opening = stream.phase == Phase::Opening;
                stream.ext.progress = false;
                self.both_over(id);
                if self.side == Side::Agent {
                    // Nobody waits for an answer any more, so a target that takes nothing must not
                    // hold its socket.
                    let grace = if opening {
                        self.config.dial_grace
                    } else {
                        self.config.delivery_grace
                    };
                    self.table.arm(id, now.saturating_add(grace));
                }
            }
            (_, SendPhase::Finished | SendPhase::Delivered) => {}
        }
    }

    /// An `EOF` went one way or the other: neither direction carries anything more.
    pub(crate) fn both_over(&mut self, id: StreamId) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        self.table.buffered = self
            .table
            .buffered
            .saturating_sub(stream.send.queue.clear());
        stream.send.phase = SendPhase::Finished;
        if stream.receive.phase == ReceivePhase::Open {
            stream.receive.phase = ReceivePhase::Finished;
        }
        if stream.phase == Phase::Open && std::mem::take(&mut stream.send.waiting) {
            self.table.events.push_back(Event::Writable { stream: id });
        }
        let left = stream.is_orphaned();
        self.table.wake_reader(id);
        self.table.wake_starved();
        if left {
            self.deliver(id);
        } else {
            self.end_if_complete(id);
        }
    }

    fn recv_pause(&mut self, connection: i64, paused: bool) {
        let found =
            stream_of(connection).and_then(|id| Some((id, self.table.streams.get_mut(&id)?)));
        if let Some((id, stream)) = found {
            stream.mark_known();
            stream.ext.paused = paused;
            self.table.queue_data(id);
            self.table.wake_writer(id);
        }
    }

    /// Asks the peer to pause or to go on, by what the stream and the session hold.
    pub(crate) fn regulate(&mut self, id: StreamId) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        let (high, low) = if self.held > self.config.session_pause {
            (self.config.pause_floor, self.config.pause_floor / 4)
        } else {
            (self.config.pause_above, self.config.resume_below)
        };
        let held = stream.ext.held;
        stream.ext.pause = if stream.ext.pause {
            held > low
        } else {
            held > high
        };
        self.table.queue_control(id);
    }

    pub(super) fn answer(&mut self, connection: i64, answer: Answer) {
        if self.answers.len() < self.config.answers_max
            && self.answers.back() != Some(&(connection, answer))
        {
            self.answers.push_back((connection, answer));
        }
    }
}
