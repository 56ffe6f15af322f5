//! Why streams and sessions are abandoned, by the numbers of the wire.

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

    /// Returns the reason with this number on the wire; an unknown number is a later version's
    /// reason and reads as [`Reason::Aborted`].
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
