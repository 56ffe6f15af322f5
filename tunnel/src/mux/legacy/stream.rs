//! One stream: two directions that end together.

use bytes::Bytes;

use crate::dialect::remotedialer::Body;
use crate::mux::buffer::Buffer;
use crate::mux::error::{Ending, Reason};
use crate::mux::stream::{Phase, ReceivePhase};
use crate::mux::{StreamId, Time};

use super::text;

/// The direction that carries our bytes to the peer.
#[derive(Debug, Default)]
pub(super) struct SendHalf {
    pub(super) phase: SendPhase,
    pub(super) queue: Buffer,
    /// The peer asked us to send nothing.
    pub(super) paused: bool,
    /// In the schedule's data queue.
    pub(super) queued: bool,
    /// In the schedule's queue for the session's send buffer.
    pub(super) starved: bool,
    /// The user was told "blocked" and is owed a writable event.
    pub(super) waiting: bool,
}

/// How far our direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SendPhase {
    /// Takes bytes.
    #[default]
    Open,
    /// Finished by its user; queued bytes go out first, then `EOF`.
    Finishing,
    /// Abandoned by its user; queued bytes go out first, then an error.
    Aborting(Reason),
    /// One side has told the other that the connection is over.
    Over,
}

/// The direction that carries the peer's bytes to us.
#[derive(Debug)]
pub(super) struct ReceiveHalf {
    pub(super) phase: ReceivePhase,
    pub(super) queue: Buffer,
    /// Bytes that arrived and were not consumed.
    pub(super) held: usize,
    /// The user has taken bytes since the last look.
    pub(super) progress: bool,
    /// What we want of the peer, and what it was told.
    pub(super) pause: bool,
    pub(super) pause_told: bool,
    /// The user was told "blocked" and is owed a readable event.
    pub(super) waiting: bool,
}

/// A stream as the core keeps it.
///
/// ```text
///   connect received             connect queued
///         |                            |
///    +----v----+    accept        +----v--------------------------------------+
///    | opening +------------------> open                                      |
///    +----+----+                  |   EOF sent behind the queue, or received: |
///         |                       |   send --> over, receive --> finished     |
///         |                       +----+--------------------------------+-----+
///         | error, EOF, grace          | error, reset, overrun, grace   | delivered
///    +----v----------------------------v--------------------------------v-----+
///    | ended                                                                  |
///    +----+-------------------------------------------------------------------+
///         | released by its user, nothing left to send
///         v
///       gone
/// ```
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) phase: Phase,
    pub(super) send: SendHalf,
    pub(super) receive: ReceiveHalf,
    /// The connect that is to be sent.
    pub(super) connect: Option<Bytes>,
    /// The error that is to be sent.
    pub(super) error: Option<Reason>,
    /// No message went either way since the last list.
    pub(super) quiet: bool,
    /// Data of no bytes is to be sent: a peer that has no such connection says so.
    pub(super) question: bool,
    /// In the schedule's control queue.
    pub(super) queued: bool,
    /// When an opener's leaving ends it.
    pub(super) deadline: Option<Time>,
    /// The peer has shown that it knows the connection.
    pub(super) known: bool,
    /// Lists in a row, made by a peer that knows the connection, that miss it.
    pub(super) missed: u8,
    /// The user holds no handle any more.
    pub(super) released: bool,
}

impl Stream {
    /// A stream that we open.
    pub(super) fn opened(target: Bytes) -> Self {
        Self {
            phase: Phase::Open,
            connect: Some(target),
            known: false,
            ..Self::incoming()
        }
    }

    /// A stream that the peer opens.
    pub(super) fn incoming() -> Self {
        Self {
            phase: Phase::Opening,
            send: SendHalf::default(),
            receive: ReceiveHalf {
                phase: ReceivePhase::Open,
                queue: Buffer::default(),
                held: 0,
                progress: false,
                pause: false,
                pause_told: false,
                waiting: false,
            },
            connect: None,
            error: None,
            quiet: false,
            question: false,
            queued: false,
            deadline: None,
            known: true,
            missed: 0,
            released: false,
        }
    }

    /// The peer has said something about the connection.
    pub(super) const fn heard(&mut self) {
        self.known = true;
        self.missed = 0;
        self.quiet = false;
    }

    pub(super) const fn ending(&self) -> Option<Ending> {
        match self.phase {
            Phase::Opening | Phase::Open => None,
            Phase::Ended(ending) => Some(ending),
        }
    }

    /// Whether both sides know that the connection is over and everything was delivered.
    pub(super) fn is_complete(&self) -> bool {
        self.phase == Phase::Open
            && self.send.phase == SendPhase::Over
            && self.receive.phase == ReceivePhase::Delivered
    }

    /// Whether the core may forget the stream.
    pub(super) fn is_gone(&self) -> bool {
        self.released && self.ending().is_some() && self.error.is_none()
    }

    pub(super) fn has_control(&self) -> bool {
        self.connect.is_some() || self.error.is_some() || self.question || self.pause_due()
    }

    /// Whether the peer still hears of this stream.
    pub(super) fn sends(&self) -> bool {
        self.phase == Phase::Open && self.send.phase != SendPhase::Over
    }

    fn pause_due(&self) -> bool {
        self.ending().is_none()
            && self.send.phase != SendPhase::Over
            && self.receive.pause != self.receive.pause_told
    }

    /// Takes the next control message, in the order in which the peer must see them.
    pub(super) fn next_control(&mut self) -> Option<Body> {
        if let Some(target) = self.connect.take() {
            return Some(Body::Connect(target));
        }
        if let Some(reason) = self.error.take() {
            return Some(Body::Error(text::of(reason)));
        }
        if std::mem::take(&mut self.question) && self.sends() {
            return Some(Body::Data(Bytes::new()));
        }
        if !self.pause_due() {
            return None;
        }
        self.receive.pause_told = self.receive.pause;
        Some(if self.receive.pause {
            Body::Pause
        } else {
            Body::Resume
        })
    }

    /// Whether the data queue should know the stream.
    pub(super) fn has_data(&self) -> bool {
        let last = matches!(
            self.send.phase,
            SendPhase::Finishing | SendPhase::Aborting(_)
        );
        let empty = self.send.queue.is_empty();
        self.phase == Phase::Open && ((last && empty) || (!empty && !self.send.paused))
    }
}

/// What a stream has to send when it is its turn.
pub(super) enum Next {
    Data(Bytes),
    Finish,
    Abort(Reason),
}

impl Stream {
    /// Takes the next data of at most `max` bytes, or what comes behind the last of it.
    pub(super) fn next_data(&mut self, max: usize) -> Option<Next> {
        if !self.has_data() {
            return None;
        }
        if let Some(data) = self.send.queue.pop(max) {
            self.quiet = false;
            return Some(Next::Data(data));
        }
        match self.send.phase {
            SendPhase::Finishing => Some(Next::Finish),
            SendPhase::Aborting(reason) => Some(Next::Abort(reason)),
            SendPhase::Open | SendPhase::Over => None,
        }
    }
}

/// Returns the number of a connection on the wire.
pub(super) const fn connection(id: StreamId) -> i64 {
    id.number().cast_signed()
}

/// Returns the stream of a connection, whose number is positive.
pub(super) fn stream_of(connection: i64) -> Option<StreamId> {
    StreamId::new(u64::try_from(connection).ok()?)
}
