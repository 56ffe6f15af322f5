//! The frames that two cores exchange. How they look in bytes is a dialect's business.

use bytes::Bytes;

use crate::wire::Reason;

/// The longest target of an [`Frame::Open`] in bytes.
pub const TARGET_MAX: usize = 512;

/// Which end of a link a core is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The public side. It opens odd streams.
    Server,
    /// The private side. It opens even streams.
    Agent,
}

impl Side {
    /// Returns the other end.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::Server => Self::Agent,
            Self::Agent => Self::Server,
        }
    }

    pub(crate) const fn first_stream(self) -> u64 {
        match self {
            Self::Server => 1,
            Self::Agent => 2,
        }
    }
}

/// The number of a stream within its session: never zero, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

impl StreamId {
    /// Returns the identifier with this number, which must not be zero.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number == 0 {
            None
        } else {
            Some(Self(number))
        }
    }

    /// Returns the number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Returns the side that opens this stream.
    #[must_use]
    pub const fn opener(self) -> Side {
        if self.0 % 2 == 1 {
            Side::Server
        } else {
            Side::Agent
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Start a stream to a target; the sender of this frame may be sent `window` bytes.
    Open {
        /// The new stream.
        stream: StreamId,
        /// The credit that the opener gives, in bytes.
        window: u32,
        /// Where to: at most [`TARGET_MAX`] bytes.
        target: Bytes,
    },
    /// The target is dialed; the sender of this frame may be sent `window` bytes.
    Accept {
        /// The stream that is accepted.
        stream: StreamId,
        /// The credit that the acceptor gives, in bytes.
        window: u32,
    },
    /// Bytes of a stream; they use up credit.
    Data {
        /// The stream they belong to.
        stream: StreamId,
        /// The bytes.
        data: Bytes,
    },
    /// More credit.
    Window {
        /// The stream that it is for.
        stream: StreamId,
        /// The bytes that may be sent in addition.
        credit: u32,
    },
    /// No more data from the sender of this frame; the other half goes on.
    Finish {
        /// The stream that is finished in this direction.
        stream: StreamId,
    },
    /// Everything up to the peer's finish has reached the socket behind this end.
    Delivered {
        /// The stream that is delivered in the direction towards the sender.
        stream: StreamId,
    },
    /// Both halves are abandoned. Refuses an open, too.
    Reset {
        /// The stream that is over.
        stream: StreamId,
        /// Why.
        reason: Reason,
    },
    /// Are you there?
    Ping {
        /// Comes back in the pong.
        nonce: u64,
    },
    /// I am.
    Pong {
        /// That of the ping.
        nonce: u64,
    },
    /// The sender accepts no new streams; those that are open go on.
    GoAway {
        /// Why.
        reason: Reason,
    },
}
