//! The streams of `watertight.v1`: credit, and two halves that live and finish independently.

use bytes::Bytes;

use crate::mux::error::Reason;
use crate::mux::native::window::{ReceiveWindow, SendWindow};
use crate::mux::stream::{Phase, ReceivePhase, SendPhase};
use crate::mux::table::Dialect;
use crate::wire::frame::{Frame, StreamId};

/// What `watertight.v1` adds to a stream, whose two halves live and finish independently.
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
/// The ending is the moment at which the request is over by protocol: an END is told there, and
/// nowhere else.
#[derive(Debug)]
pub(crate) struct Halves {
    /// The credit that the peer gave.
    pub(super) send: SendWindow,
    /// The credit that we gave.
    pub(super) receive: ReceiveWindow,
    pub(super) due: Due,
}

/// The control frames that a stream has to send. They are flags and not a queue, so they need no
/// bound.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(super) open: Option<Bytes>,
    pub(super) accept: bool,
    pub(super) window: bool,
    pub(super) delivered: bool,
    pub(super) reset: Option<Reason>,
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

impl Halves {
    pub(crate) fn new(receive: ReceiveWindow) -> Self {
        Self {
            send: SendWindow::default(),
            receive,
            due: Due::default(),
        }
    }
}

impl Dialect for Halves {
    fn has_control(stream: &Stream) -> bool {
        !stream.ext.due.is_empty()
    }

    fn has_data(stream: &Stream) -> bool {
        let last = matches!(
            stream.send.phase,
            SendPhase::Finishing | SendPhase::Aborting(_)
        );
        stream.phase == Phase::Open && (last || !stream.send.queue.is_empty())
    }

    fn nothing_to_send(&self) -> bool {
        self.due.is_empty()
    }

    fn send_credit(&self) -> usize {
        self.send.left()
    }

    fn consume(&mut self, length: usize) {
        self.send.consume(length);
    }
}

/// A stream of this dialect.
pub(crate) type Stream = crate::mux::stream::Stream<Halves>;

impl Stream {
    /// Whether both halves are delivered, so that the stream must end now.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.phase == Phase::Open
            && self.send.phase == SendPhase::Delivered
            && self.receive.phase == ReceivePhase::Delivered
    }

    /// Takes the next control frame, in the order in which the peer must see them.
    pub(crate) fn next_control(&mut self, stream: StreamId) -> Option<Frame> {
        if let Some(target) = self.ext.due.open.take() {
            let window = self.ext.receive.size();
            return Some(Frame::Open {
                stream,
                window,
                target,
            });
        }
        if std::mem::take(&mut self.ext.due.accept) {
            let window = self.ext.receive.size();
            return Some(Frame::Accept { stream, window });
        }
        if std::mem::take(&mut self.ext.due.window) {
            let credit = self.ext.receive.take_credit();
            return Some(Frame::Window { stream, credit });
        }
        if std::mem::take(&mut self.ext.due.delivered) {
            return Some(Frame::Delivered { stream });
        }
        self.ext
            .due
            .reset
            .take()
            .map(|reason| Frame::Reset { stream, reason })
    }

    /// Takes the next data frame of at most `max` bytes, or the finish or reset behind the last
    /// one. The second value is the number of bytes that left the queue.
    pub(crate) fn next_data(&mut self, stream: StreamId, max: usize) -> Option<(Frame, usize)> {
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
