//! The core of a session in either dialect, and its messages as bytes. What does not depend on the
//! dialect is [`Mux`], to which a core dereferences.

use std::ops::{Deref, DerefMut};

use bytes::{Bytes, BytesMut};
use tunnel_proto::mux::{Mux, SessionError};
use tunnel_proto::wire::frame::{Frame, Side};
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

    /// Appends one WebSocket message to `out`: as many frames as fit into `batch` bytes where the
    /// dialect allows more than one.
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

    /// Returns how the session talks.
    pub(super) const fn dialect(&self) -> Dialect {
        match self {
            Self::Native(_) => Dialect::Native,
            Self::Remotedialer { .. } => Dialect::Remotedialer,
        }
    }

    /// Whether streams may carry [`tunnel_proto::wire::datagram`]s.
    pub(super) const fn carries_datagrams(&self) -> bool {
        match self {
            Self::Native(_) => true,
            Self::Remotedialer { .. } => false,
        }
    }
}

impl Deref for Core {
    type Target = dyn Mux;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Native(mux) => mux.as_ref(),
            Self::Remotedialer { mux, .. } => mux.as_ref(),
        }
    }
}

impl DerefMut for Core {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Native(mux) => mux.as_mut(),
            Self::Remotedialer { mux, .. } => mux.as_mut(),
        }
    }
}

/// A message with less room than this is full.
const ROOM_MIN: usize = 256;
