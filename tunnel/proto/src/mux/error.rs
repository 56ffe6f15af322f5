//! What can go wrong, by operation and by radius: one stream, or the whole session.

use std::fmt;

pub use crate::wire::Reason;

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
    /// [`Config::max_streams`](crate::mux::native::Config::max_streams) streams are alive.
    #[error("too many streams are open in this session")]
    Busy,
    /// This side or the peer is draining.
    #[error("the session is draining")]
    Draining,
    /// The session is over.
    #[error("the session is over")]
    SessionOver,
    /// The target is longer than [`TARGET_MAX`](crate::wire::frame::TARGET_MAX).
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
    /// Nothing came from the peer for [`Config::silence`](crate::mux::native::Config::silence).
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

/// A bound with which no stream could move is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} must not be 0: no stream could move a byte")]
pub struct ConfigError(pub &'static str);

impl ConfigError {
    /// Names the first of the bounds that is zero.
    pub(crate) const fn if_zero(mut bounds: &[(&'static str, usize)]) -> Result<(), Self> {
        while let [(name, bound), rest @ ..] = bounds {
            if *bound == 0 {
                return Err(Self(name));
            }
            bounds = rest;
        }
        Ok(())
    }
}
