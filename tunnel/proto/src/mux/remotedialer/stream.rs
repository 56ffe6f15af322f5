//! One stream: two directions that end together.

use bytes::Bytes;

use crate::mux::error::Reason;
use crate::mux::remotedialer::text;
use crate::mux::stream::{Phase, ReceivePhase, SendPhase};
use crate::mux::table::Dialect;
use crate::wire::frame::StreamId;
use crate::wire::remotedialer::Body;

/// What remotedialer's dialect adds to a stream, whose two directions end together.
///
/// ```text
///   connect received             connect queued
///         |                            |
///    +----v----+    accept        +----v--------------------------------------+
///    | opening +------------------> open                                      |
///    +----+----+                  |   EOF sent behind the queue, or received: |
///         |                       |   send --> finished, receive --> finished |
///         |                       +----+--------------------------------+-----+
///         | error, EOF, grace          | error, reset, overrun, grace   | delivered
///    +----v----------------------------v--------------------------------v-----+
///    | ended                                                                  |
///    +----+-------------------------------------------------------------------+
///         | released by its user, nothing left to send
///         v
///       gone
/// ```
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// The peer asked us to send nothing.
    pub(super) paused: bool,
    /// Bytes that arrived and were not consumed.
    pub(super) held: usize,
    /// The user has taken bytes since the last look.
    pub(super) progress: bool,
    /// What we want of the peer, and what it was told.
    pub(super) pause: bool,
    pub(super) pause_sent: bool,
    /// The connect that is to be sent.
    pub(super) connect: Option<Bytes>,
    /// The error that is to be sent.
    pub(super) error: Option<Reason>,
    /// No message went either way since the last list.
    pub(super) idle: bool,
    /// Data of no bytes is to be sent: a peer that has no such connection says so.
    pub(super) probe: bool,
    /// The peer has shown that it knows the connection.
    pub(super) known: bool,
    /// Lists in a row, made by a peer that knows the connection, that miss it.
    pub(super) missed: u8,
}

/// A stream of this dialect.
pub(crate) type Stream = crate::mux::stream::Stream<Connection>;

impl Dialect for Connection {
    fn has_control(stream: &Stream) -> bool {
        let own = &stream.ext;
        own.connect.is_some() || own.error.is_some() || own.probe || stream.pause_due()
    }

    fn has_data(stream: &Stream) -> bool {
        let last = matches!(
            stream.send.phase,
            SendPhase::Finishing | SendPhase::Aborting(_)
        );
        let empty = stream.send.queue.is_empty();
        stream.phase == Phase::Open && ((last && empty) || (!empty && !stream.ext.paused))
    }

    fn nothing_to_send(&self) -> bool {
        self.error.is_none()
    }

    fn send_credit(&self) -> usize {
        if self.paused { 0 } else { usize::MAX }
    }

    fn consume(&mut self, _: usize) {}
}

impl Stream {
    /// A stream that we open. It takes bytes at once.
    pub(crate) fn opened(target: Bytes) -> Self {
        let mut stream = Self::new(Connection {
            connect: Some(target),
            ..Connection::default()
        });
        stream.phase = Phase::Open;
        stream
    }

    /// A stream that the peer opens.
    pub(crate) fn incoming() -> Self {
        Self::new(Connection {
            known: true,
            ..Connection::default()
        })
    }

    /// The peer has said something about the connection.
    pub(crate) const fn mark_known(&mut self) {
        self.ext.known = true;
        self.ext.missed = 0;
        self.ext.idle = false;
    }

    /// Whether both sides know that the connection is over and everything was delivered.
    pub(crate) fn is_complete(&self) -> bool {
        self.phase == Phase::Open
            && self.send.phase == SendPhase::Finished
            && self.receive.phase == ReceivePhase::Delivered
    }

    /// Whether the peer still hears of this stream.
    pub(crate) fn sends(&self) -> bool {
        self.phase == Phase::Open && self.send.phase != SendPhase::Finished
    }

    fn pause_due(&self) -> bool {
        self.ending().is_none()
            && self.send.phase != SendPhase::Finished
            && self.ext.pause != self.ext.pause_sent
    }

    /// Takes the next control message, in the order in which the peer must see them.
    pub(crate) fn next_control(&mut self) -> Option<Body> {
        if let Some(target) = self.ext.connect.take() {
            return Some(Body::Connect(target));
        }
        if let Some(reason) = self.ext.error.take() {
            return Some(Body::Error(text::of(reason)));
        }
        if std::mem::take(&mut self.ext.probe) && self.sends() {
            return Some(Body::Data(Bytes::new()));
        }
        if !self.pause_due() {
            return None;
        }
        self.ext.pause_sent = self.ext.pause;
        Some(if self.ext.pause {
            Body::Pause
        } else {
            Body::Resume
        })
    }
}

/// What a stream has to send when it is its turn.
pub(crate) enum Next {
    Data(Bytes),
    Finish,
    Abort(Reason),
}

impl Stream {
    /// Takes the next data of at most `max` bytes, or what comes behind the last of it.
    pub(crate) fn next_data(&mut self, max: usize) -> Option<Next> {
        if !Connection::has_data(self) {
            return None;
        }
        if let Some(data) = self.send.queue.pop(max) {
            self.ext.idle = false;
            return Some(Next::Data(data));
        }
        match self.send.phase {
            SendPhase::Finishing => Some(Next::Finish),
            SendPhase::Aborting(reason) => Some(Next::Abort(reason)),
            SendPhase::Open | SendPhase::Finished | SendPhase::Delivered => None,
        }
    }
}

/// Returns the number of a connection on the wire.
pub(crate) const fn connection(id: StreamId) -> i64 {
    id.number().cast_signed()
}

/// Returns the stream of a connection, whose number is positive.
pub(crate) fn stream_of(connection: i64) -> Option<StreamId> {
    StreamId::new(u64::try_from(connection).ok()?)
}
