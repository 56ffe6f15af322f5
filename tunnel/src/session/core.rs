//! The core of a session in either dialect, and its messages as bytes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tunnel_proto::mux::{
    Ending, Event, Glance, OpenError, ReadError, Reason, SessionError, WriteError,
};
use tunnel_proto::wire::frame::{Frame, Side, StreamId};
use tunnel_proto::wire::remotedialer::Body;
use tunnel_proto::wire::{DecodeError, Dialect, native, remotedialer};
use tunnel_proto::{Time, mux};

use crate::metrics::Transmitted;

/// What decides in a session.
#[derive(Debug)]
pub enum Core {
    /// Speaks `watertight.v1`.
    Native(Box<mux::native::Mux>),
    /// Speaks remotedialer's dialect.
    Remotedialer {
        /// The core.
        mux: Box<mux::remotedialer::Mux>,
        /// Messages sent; the wire has a number for each, for logs.
        sent: i64,
    },
}

/// Why a message was not taken. The link lets go.
#[derive(Debug)]
pub(crate) enum MessageError {
    Session(SessionError),
    Dialect(DecodeError),
}

impl From<SessionError> for MessageError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

macro_rules! either {
    ($core:expr, $mux:ident => $call:expr) => {
        match $core {
            Core::Native($mux) => $call,
            Core::Remotedialer { mux: $mux, .. } => $call,
        }
    };
}

impl Core {
    /// Creates the core for `watertight.v1`.
    #[must_use]
    pub fn native(side: Side, config: mux::native::Config, now: Time) -> Self {
        Self::Native(Box::new(mux::native::Mux::new(side, config, now)))
    }

    /// Creates the core for remotedialer's dialect; `name` is `clientKey/sessionKey`.
    #[must_use]
    pub fn remotedialer(
        side: Side,
        name: &str,
        config: mux::remotedialer::Config,
        now: Time,
    ) -> Self {
        let mux = Box::new(mux::remotedialer::Mux::new(side, name, config, now));
        Self::Remotedialer { mux, sent: 0 }
    }

    /// Takes the bytes of one WebSocket message.
    pub(super) fn handle_message(&mut self, now: Time, bytes: Bytes) -> Result<(), MessageError> {
        match self {
            Self::Native(mux) => {
                for frame in native::Decoder::new(bytes) {
                    let frame = frame.map_err(|error| MessageError::Dialect(error.into()))?;
                    mux.handle_frame(now, frame)?;
                }
            }
            Self::Remotedialer { mux, .. } => {
                let message = remotedialer::decode(bytes)
                    .map_err(|error| MessageError::Dialect(error.into()))?;
                mux.handle_message(now, message)?;
            }
        }
        Ok(())
    }

    /// Appends one WebSocket message to `out`: as many frames as fit into `batch` bytes where the dialect allows more than one.
    pub(super) fn poll_message(&mut self, batch: usize, out: &mut BytesMut) -> Transmitted {
        let mut transmitted = Transmitted::default();
        match self {
            Self::Native(mux) => {
                while let Some(room) = batch.checked_sub(out.len() + native::OVERHEAD_MAX)
                    && room >= ROOM_MIN
                    && let Some(frame) = mux.poll_transmit(room)
                {
                    let before = out.len();
                    native::encode(&frame, out);
                    match frame {
                        Frame::Data { .. } => transmitted.data += out.len() - before,
                        Frame::Reset { .. } => transmitted.errors += out.len() - before,
                        Frame::Open { .. }
                        | Frame::Accept { .. }
                        | Frame::Window { .. }
                        | Frame::Finish { .. }
                        | Frame::Delivered { .. }
                        | Frame::Ping { .. }
                        | Frame::Pong { .. }
                        | Frame::GoAway { .. } => {}
                    }
                }
            }
            Self::Remotedialer { mux, sent } => {
                if let Some(message) = mux.poll_transmit() {
                    *sent = sent.wrapping_add(1);
                    remotedialer::encode(*sent, &message, out);
                    match message.body {
                        Body::Data(_) => transmitted.data = out.len(),
                        Body::Error(_) => transmitted.errors = out.len(),
                        Body::Connect(_)
                        | Body::AddClient(_)
                        | Body::RemoveClient(_)
                        | Body::Pause
                        | Body::Resume
                        | Body::SyncConnections(_)
                        | Body::Unknown(_) => {}
                    }
                }
            }
        }
        transmitted
    }

    /// Whether a WebSocket ping is to be sent now.
    pub(super) fn poll_ping(&mut self) -> bool {
        match self {
            // It has pings of its own.
            Self::Native(_) => false,
            Self::Remotedialer { mux, .. } => mux.poll_ping(),
        }
    }

    /// Takes note of a WebSocket ping or pong.
    pub(super) fn handle_heartbeat(&mut self, now: Time, pong: bool) {
        match self {
            Self::Native(_) => {}
            Self::Remotedialer { mux, .. } => mux.handle_heartbeat(now, pong),
        }
    }

    pub(super) fn open(&mut self, now: Time, target: Bytes) -> Result<StreamId, OpenError> {
        either!(self, mux => mux.open(now, target))
    }

    pub(super) fn accept(&mut self, now: Time, id: StreamId) -> Result<(), Ending> {
        match self {
            Self::Native(mux) => mux.accept(id),
            Self::Remotedialer { mux, .. } => mux.accept(now, id),
        }
    }

    /// Tells a peer of a client. Only remotedialer's dialect has peers.
    pub(super) fn announce(&mut self, client: &str, key: i64, present: bool) {
        match self {
            Self::Native(_) => {}
            Self::Remotedialer { mux, .. } => mux.announce(client, key, present),
        }
    }

    pub(super) fn has_client(&self, client: &str) -> bool {
        match self {
            Self::Native(_) => false,
            Self::Remotedialer { mux, .. } => mux.has_client(client),
        }
    }

    pub(super) fn is_open(&self, id: StreamId) -> bool {
        either!(self, mux => mux.is_open(id))
    }

    pub(super) fn capacity(&mut self, id: StreamId) -> Result<usize, WriteError> {
        either!(self, mux => mux.capacity(id))
    }

    pub(super) fn write(&mut self, id: StreamId, data: Bytes) -> Result<usize, WriteError> {
        either!(self, mux => mux.write(id, data))
    }

    pub(super) fn finish(&mut self, id: StreamId) -> Result<(), Ending> {
        either!(self, mux => mux.finish(id))
    }

    pub(super) fn reset(&mut self, id: StreamId, reason: Reason) {
        either!(self, mux => mux.reset(id, reason));
    }

    pub(super) fn abort(&mut self, id: StreamId, reason: Reason) {
        either!(self, mux => mux.abort(id, reason));
    }

    pub(super) fn read(&mut self, id: StreamId, max: usize) -> Result<Option<Bytes>, ReadError> {
        either!(self, mux => mux.read(id, max))
    }

    pub(super) fn consume(&mut self, id: StreamId, length: usize) {
        either!(self, mux => mux.consume(id, length));
    }

    pub(super) fn deliver(&mut self, id: StreamId) {
        either!(self, mux => mux.deliver(id));
    }

    pub(super) fn release(&mut self, id: StreamId) {
        either!(self, mux => mux.release(id));
    }

    pub(super) fn leave(&mut self, now: Time, id: StreamId) {
        either!(self, mux => mux.leave(now, id));
    }

    pub(super) fn ending(&self, id: StreamId) -> Option<Ending> {
        either!(self, mux => mux.ending(id))
    }

    pub(super) fn streams(&self) -> usize {
        either!(self, mux => mux.streams())
    }

    /// Returns how the session talks.
    pub(super) const fn dialect(&self) -> Dialect {
        match self {
            Self::Native(_) => Dialect::Native,
            Self::Remotedialer { .. } => Dialect::Remotedialer,
        }
    }

    pub(super) fn glance(&self, max: usize) -> Glance {
        either!(self, mux => mux.glance(max))
    }

    /// Takes how long the last ping took, once.
    pub(super) fn poll_rtt(&mut self) -> Option<Duration> {
        match self {
            Self::Native(mux) => mux.poll_rtt(),
            // The WebSocket's pings carry nothing by which to know them again.
            Self::Remotedialer { .. } => None,
        }
    }

    /// Whether streams may carry [`tunnel_proto::wire::datagram`]s.
    pub(super) const fn carries_datagrams(&self) -> bool {
        match self {
            Self::Native(_) => true,
            Self::Remotedialer { .. } => false,
        }
    }

    /// Whether a stream that is opened now can be expected to be answered.
    pub(super) fn takes_opens(&self, now: Time) -> bool {
        match self {
            Self::Native(mux) => mux.takes_opens(now),
            // Its clients have one session each.
            Self::Remotedialer { mux, .. } => mux.over().is_none(),
        }
    }

    pub(super) fn over(&self) -> Option<SessionError> {
        either!(self, mux => mux.over())
    }

    pub(super) fn drain(&mut self) {
        either!(self, mux => mux.drain());
    }

    pub(super) fn end_session(&mut self, reason: Reason) {
        either!(self, mux => mux.end_session(reason));
    }

    pub(super) fn handle_link_lost(&mut self) {
        either!(self, mux => mux.handle_link_lost());
    }

    pub(super) fn handle_timeout(&mut self, now: Time) {
        either!(self, mux => mux.handle_timeout(now));
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        either!(self, mux => mux.poll_timeout())
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        either!(self, mux => mux.poll_event())
    }

    pub(super) fn has_transmit(&self) -> bool {
        either!(self, mux => mux.has_transmit())
    }
}

/// A message with less room than this is full.
const ROOM_MIN: usize = 256;
