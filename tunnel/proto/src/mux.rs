//! Many streams over one link: two pure cores, one for each dialect.
//!
//! A core has no clock and does no I/O. Messages and commands go in, messages, events and the next
//! deadline come out. Time is always an argument, counted from an origin that the caller chooses.

use bytes::Bytes;

pub mod buffer;
pub mod error;
pub mod native;
pub mod remotedialer;
pub mod schedule;
mod stats;
pub mod stream;
mod table;

pub use error::{By, Ending, OpenError, ReadError, Reason, SessionError, WriteError};
pub use stats::{Glance, StreamGlance};

use crate::wire::frame::StreamId;

/// What the core has to tell its user. Each stream has at most one event of each kind waiting, so they need no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream: accept it or reset it.
    Opened {
        /// The new stream.
        stream: StreamId,
        /// Where the peer wants it to go.
        target: Bytes,
    },
    /// The peer accepted a stream of ours.
    Accepted {
        /// The stream.
        stream: StreamId,
    },
    /// A reader that was told "blocked" should try again.
    Readable {
        /// The stream.
        stream: StreamId,
    },
    /// A writer that was told "blocked" should try again.
    Writable {
        /// The stream.
        stream: StreamId,
    },
    /// The stream is over by protocol. Told exactly once for every stream.
    Ended {
        /// The stream.
        stream: StreamId,
        /// How it ended.
        ending: Ending,
    },
    /// The peer takes no new streams.
    PeerDraining,
    /// The peer is a server with more clients than are remembered: those beyond are not reached through it. Told once.
    TooManyClients,
    /// The session is over; every stream has ended.
    SessionOver(SessionError),
}

/// What a caller hears of a stream that is gone: it can only have let go of it itself.
const GONE: Ending = Ending::Reset(Reason::Cancelled, By::Us);
