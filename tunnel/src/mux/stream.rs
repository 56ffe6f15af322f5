//! One stream: two halves that live and finish independently, and one ending.

use bytes::Bytes;

use super::Time;
use super::buffer::Buffer;
use super::error::{Ending, Reason};
use super::frame::{Frame, StreamId};
use super::window::{ReceiveWindow, SendWindow};

/// The half that carries our bytes to the peer.
#[derive(Debug, Default)]
pub struct SendHalf {
    pub(super) phase: SendPhase,
    pub(super) window: SendWindow,
    pub(super) queue: Buffer,
    /// In the schedule's data queue.
    pub(super) queued: bool,
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
    /// The finish is sent.
    Finished,
    /// The peer has delivered everything.
    Delivered,
}

/// The half that carries the peer's bytes to us.
#[derive(Debug)]
pub struct ReceiveHalf {
    pub(super) phase: ReceivePhase,
    pub(super) window: ReceiveWindow,
    pub(super) queue: Buffer,
    /// The user was told "blocked" and is owed a readable event.
    pub(super) waiting: bool,
}

/// How far the peer's direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceivePhase {
    /// More may arrive.
    Open,
    /// The peer's finish arrived, or the connection is over; what is queued is still to be delivered.
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

/// A stream as the core keeps it.
///
/// ```text
///            open / recv_open
///                   |
///              +----v----+      reset, recv_reset, deadline, session over
///              | opening |---------------------------------------------+
///              +----+----+                                             |
///                   | accept / recv_accept                             |
///   +---------------v---------------------------------------------+    |
///   | open                                                        |    |
///   |   send     open --finish--> finishing --> finished --D--> delivered
///   |   receive  open ----F-----> finished ----deliver--------> delivered
///   +---------------+---------------------------------------------+    |
///                   | both halves delivered                            |
///              +----v----+                                             |
///              |  ended  <---------------------------------------------+
///              +----+----+
///                   | released by its user, nothing left to send
///                   v
///                 gone
///
///   F: recv_finish     D: recv_delivered     finishing --> finished: the last queued byte and the finish are sent
/// ```
///
/// The ending is the moment at which the request is over by protocol: an END is told there, and nowhere else.
#[derive(Debug)]
pub struct Stream {
    pub(super) phase: Phase,
    pub(super) send: SendHalf,
    pub(super) receive: ReceiveHalf,
    pub(super) due: Due,
    /// When our open must be answered.
    pub(super) deadline: Option<Time>,
    /// The user holds no handle any more.
    pub(super) released: bool,
}

/// The control frames that a stream has to send. They are flags and not a queue, so they need no bound.
#[derive(Debug, Default)]
pub struct Due {
    pub(super) open: Option<Bytes>,
    pub(super) accept: bool,
    pub(super) window: bool,
    pub(super) delivered: bool,
    pub(super) reset: Option<Reason>,
    /// In the schedule's control queue.
    pub(super) queued: bool,
}

impl Due {
    fn is_empty(&self) -> bool {
        self.open.is_none()
            && !self.accept
            && !self.window
            && !self.delivered
            && self.reset.is_none()
    }
}

impl Stream {
    pub(super) fn new(window: ReceiveWindow) -> Self {
        Self {
            phase: Phase::Opening,
            send: SendHalf::default(),
            receive: ReceiveHalf {
                phase: ReceivePhase::Open,
                window,
                queue: Buffer::default(),
                waiting: false,
            },
            due: Due::default(),
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

    /// Whether both halves are delivered, so that the stream must end now.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.phase == Phase::Open
            && self.send.phase == SendPhase::Delivered
            && self.receive.phase == ReceivePhase::Delivered
    }

    /// Whether the core may forget the stream.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.released && self.ending().is_some() && self.due.is_empty()
    }

    /// Whether the data queue should know the stream.
    pub(super) fn has_data(&self) -> bool {
        let last = matches!(
            self.send.phase,
            SendPhase::Finishing | SendPhase::Aborting(_)
        );
        self.phase == Phase::Open && (last || !self.send.queue.is_empty())
    }

    /// Takes the next control frame, in the order in which the peer must see them.
    pub(super) fn next_control(&mut self, stream: StreamId) -> Option<Frame> {
        if let Some(target) = self.due.open.take() {
            let window = self.receive.window.size();
            return Some(Frame::Open {
                stream,
                window,
                target,
            });
        }
        if std::mem::take(&mut self.due.accept) {
            let window = self.receive.window.size();
            return Some(Frame::Accept { stream, window });
        }
        if std::mem::take(&mut self.due.window) {
            let credit = self.receive.window.give_back();
            return Some(Frame::Window { stream, credit });
        }
        if std::mem::take(&mut self.due.delivered) {
            return Some(Frame::Delivered { stream });
        }
        self.due
            .reset
            .take()
            .map(|reason| Frame::Reset { stream, reason })
    }

    pub(super) fn has_control(&self) -> bool {
        !self.due.is_empty()
    }

    /// Takes the next data frame of at most `max` bytes, or the finish or reset behind the last one. The second value is
    /// the number of bytes that left the queue.
    pub(super) fn next_data(&mut self, stream: StreamId, max: usize) -> Option<(Frame, usize)> {
        if self.phase != Phase::Open {
            return None;
        }
        if let Some(data) = self.send.queue.pop(max) {
            let length = data.len();
            return Some((Frame::Data { stream, data }, length));
        }
        match self.send.phase {
            SendPhase::Finishing => {
                self.send.phase = SendPhase::Finished;
                Some((Frame::Finish { stream }, 0))
            }
            SendPhase::Aborting(reason) => Some((Frame::Reset { stream, reason }, 0)),
            SendPhase::Open | SendPhase::Finished | SendPhase::Delivered => None,
        }
    }
}
