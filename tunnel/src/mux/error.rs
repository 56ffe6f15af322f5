//! What can go wrong, by operation and by radius: one stream, or the whole session.

use std::fmt;

/// Why a stream or a session was abandoned. The numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The sender wants no more and nothing went wrong.
    Done = 0,
    /// The opener gave up.
    Cancelled = 1,
    /// The socket behind the stream was reset.
    Aborted = 2,
    /// The target refused the connection.
    Refused = 3,
    /// There is no way to the target.
    Unreachable = 4,
    /// A deadline passed.
    TimedOut = 5,
    /// The agent's policy does not allow the target.
    Denied = 6,
    /// The target's name does not resolve.
    Unresolved = 7,
    /// A configured bound is reached.
    Busy = 8,
    /// The sender is draining and takes no new streams.
    Draining = 9,
    /// The session is over.
    SessionOver = 10,
    /// A newer session of the same agent took over.
    Replaced = 11,
    /// The peer broke the protocol.
    Protocol = 12,
    /// The peer sent more than its credit.
    Overrun = 13,
}

impl Reason {
    /// All of them, by their numbers.
    pub const ALL: [Self; 14] = [
        Self::Done,
        Self::Cancelled,
        Self::Aborted,
        Self::Refused,
        Self::Unreachable,
        Self::TimedOut,
        Self::Denied,
        Self::Unresolved,
        Self::Busy,
        Self::Draining,
        Self::SessionOver,
        Self::Replaced,
        Self::Protocol,
        Self::Overrun,
    ];

    /// Returns the reason with this number on the wire; an unknown number is a later version's reason and reads as
    /// [`Reason::Aborted`].
    #[must_use]
    pub const fn from_wire(value: u8) -> Self {
        match value {
            0 => Self::Done,
            1 => Self::Cancelled,
            3 => Self::Refused,
            4 => Self::Unreachable,
            5 => Self::TimedOut,
            6 => Self::Denied,
            7 => Self::Unresolved,
            8 => Self::Busy,
            9 => Self::Draining,
            10 => Self::SessionOver,
            11 => Self::Replaced,
            12 => Self::Protocol,
            13 => Self::Overrun,
            _ => Self::Aborted,
        }
    }

    /// Returns the reason's number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self as u8
    }

    /// Returns the reason's name in logs and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed out",
            Self::Denied => "denied",
            Self::Unresolved => "unresolved",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::SessionOver => "session over",
            Self::Replaced => "replaced",
            Self::Protocol => "protocol",
            Self::Overrun => "overrun",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who began an ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// This side.
    Us,
    /// The other side of the link.
    Peer,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Both halves were finished and everything was delivered at both ends.
    Finished,
    /// One side abandoned both halves.
    Reset(Reason, By),
}

impl Ending {
    /// Returns the number that an END annotation carries.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Finished => Reason::Done.to_wire(),
            Self::Reset(reason, _) => reason.to_wire(),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("finished"),
            Self::Reset(reason, By::Us) => write!(f, "reset by us: {reason}"),
            Self::Reset(reason, By::Peer) => write!(f, "reset by the peer: {reason}"),
        }
    }
}

/// Why a stream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// [`Config::max_streams`](super::Config::max_streams) streams are alive.
    #[error("too many streams are open in this session")]
    Busy,
    /// This side or the peer is draining.
    #[error("the session is draining")]
    Draining,
    /// The session is over.
    #[error("the session is over")]
    SessionOver,
    /// The target is longer than [`TARGET_MAX`](super::frame::TARGET_MAX).
    #[error("the target's name is too long")]
    TargetTooLong,
    /// The target is a flow of datagrams, and the session's dialect has none.
    #[error("the session's dialect carries no datagrams")]
    NoDatagrams,
    /// The stream was reset before it was accepted.
    #[error("the stream was refused: {0}")]
    Refused(Reason),
}

/// Why a stream takes no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No credit or no buffer now; a writable event follows.
    #[error("no credit or no buffer now")]
    Blocked,
    /// This half was already finished.
    #[error("this half is finished")]
    Finished,
    /// The stream is over.
    #[error("the stream is over: {0}")]
    Over(Ending),
}

/// Why a stream gives no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nothing has arrived; a readable event follows.
    #[error("nothing has arrived")]
    Blocked,
    /// The stream is over.
    #[error("the stream is over: {0}")]
    Over(Ending),
}

/// Why a whole session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Nothing came from the peer for [`Config::silence`](super::Config::silence).
    #[error("the peer is silent")]
    Silent,
    /// The peer opens streams faster than it reads their refusals.
    #[error("the peer floods the session with opens")]
    OpenFlood,
    /// The peer opened an identifier that is not its own or was used before.
    #[error("the peer opened a stream identifier that is not its to open")]
    BadStreamId,
    /// The session was ended.
    #[error("the session was ended: {0}")]
    Ended(Reason),
}

impl SessionError {
    /// Returns the reason that the streams of the session end with.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Ended(reason) => reason,
            Self::Silent => Reason::TimedOut,
            Self::OpenFlood | Self::BadStreamId => Reason::Protocol,
        }
    }
}
