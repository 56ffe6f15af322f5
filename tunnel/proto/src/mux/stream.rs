//! One stream: two halves and one ending.

use crate::Time;
use crate::mux::buffer::Buffer;
use crate::mux::error::{Ending, Reason};

/// The half that carries our bytes to the peer.
#[derive(Debug, Default)]
pub struct SendHalf {
    pub(super) phase: SendPhase,
    pub(super) queue: Buffer,
    /// Bytes that the user has written.
    pub(super) total: u64,
    /// In one of the schedule's queues for data.
    pub(super) queued: bool,
    /// The end of the round in which it had its last turn.
    pub(super) round: u64,
    /// In the schedule's queue for the session's send buffer.
    pub(super) starved: bool,
    /// The user was told "blocked" and is owed a writable event.
    pub(super) waiting: bool,
}

/// How far our direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendPhase {
    /// Takes bytes.
    #[default]
    Open,
    /// Finished by its user; queued bytes go out first.
    Finishing,
    /// Abandoned by its user; queued bytes go out first, then a reset.
    Aborting(Reason),
    /// The finish is sent, or the connection is over.
    Finished,
    /// The peer has delivered everything.
    Delivered,
}

/// The half that carries the peer's bytes to us.
#[derive(Debug, Default)]
pub struct ReceiveHalf {
    pub(super) phase: ReceivePhase,
    pub(super) queue: Buffer,
    /// Bytes that the user has read.
    pub(super) total: u64,
    /// The user was told "blocked" and is owed a readable event.
    pub(super) waiting: bool,
}

/// How far the peer's direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReceivePhase {
    /// More may arrive.
    #[default]
    Open,
    /// The peer's finish arrived, or the connection is over; what is queued is still to be
    /// delivered.
    Finished,
    /// Everything reached the socket behind this end.
    Delivered,
}

/// Where a stream is as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not accepted yet.
    Opening,
    /// Both halves work.
    Open,
    /// Over by protocol.
    Ended(Ending),
}

/// A stream as a core keeps it, in either dialect.
#[derive(Debug)]
pub struct Stream<R> {
    pub(super) phase: Phase,
    pub(super) send: SendHalf,
    pub(super) receive: ReceiveHalf,
    /// What the dialect adds.
    pub(super) ext: R,
    /// In the schedule's control queue.
    pub(super) queued: bool,
    /// When something must have happened.
    pub(super) deadline: Option<Time>,
    /// The user holds no handle any more.
    pub(super) released: bool,
}

impl<R> Stream<R> {
    /// Creates a stream that is being opened.
    pub(crate) fn new(ext: R) -> Self {
        Self {
            phase: Phase::Opening,
            send: SendHalf::default(),
            receive: ReceiveHalf::default(),
            ext,
            queued: false,
            deadline: None,
            released: false,
        }
    }

    /// Returns the ending, if the stream has come to it.
    #[must_use]
    pub const fn ending(&self) -> Option<Ending> {
        match self.phase {
            Phase::Opening | Phase::Open => None,
            Phase::Ended(ending) => Some(ending),
        }
    }
}

impl<R> Stream<R> {
    /// Whether the stream can come to its end without its user: that finished it and has read what
    /// arrived.
    pub(crate) fn can_detach(&self) -> bool {
        let finished = match self.send.phase {
            SendPhase::Finishing | SendPhase::Finished | SendPhase::Delivered => true,
            SendPhase::Open | SendPhase::Aborting(_) => false,
        };
        self.phase == Phase::Open && finished && self.receive.queue.is_empty()
    }

    /// Whether the stream goes on without its user.
    pub(crate) const fn is_orphaned(&self) -> bool {
        self.released && self.ending().is_none()
    }
}
