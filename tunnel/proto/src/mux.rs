//! Many streams over one link: two pure cores, one for each dialect.
//!
//! A core has no clock and does no I/O. Messages and commands go in, messages, events and the next
//! deadline come out. Time is always an argument, counted from an origin that the caller chooses.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

pub mod buffer;
pub mod error;
pub mod native;
pub mod remotedialer;
pub mod schedule;
mod stats;
pub mod stream;
mod streams;
mod table;

pub use error::{By, ConfigError, Ending, OpenError, ReadError, Reason, SessionError, WriteError};
pub use stats::{Stats, StreamStats};
pub use streams::Streams;

use crate::Time;
use crate::replicas::Health;
use crate::wire::frame::StreamId;

/// What the core has to tell its user. Each stream has at most one event of each kind waiting, so
/// they need no bound.
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
    /// The peer is a server with more clients than are remembered: those beyond are not reached
    /// through it. Told once.
    TooManyClients,
    /// The session is over; every stream has ended.
    SessionOver(SessionError),
}

/// One end of a session: many streams over one link, in either dialect.
///
/// Messages go in and out by methods of the cores themselves, since each dialect has messages of
/// its own. Nothing here is linear in the number of streams, except ending the whole session.
pub trait Mux: Streams + fmt::Debug + Send {
    /// Returns whether a stream that is opened at `now` can be expected to be answered.
    fn health(&self, now: Time) -> Health;

    /// Sends a ping if the peer has been silent for a while, so that [`Self::health`] soon shows
    /// whether it is frozen.
    fn probe(&mut self, now: Time);

    /// Opens a stream to `target`. The peer's answer comes as [`Event::Accepted`] or
    /// [`Event::Ended`]; a reset cancels the open. Remotedialer's dialect has no answer: the stream
    /// takes bytes at once.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when there cannot be a stream now; nothing has been sent then.
    fn open(&mut self, now: Time, target: Bytes) -> Result<StreamId, OpenError>;

    /// Accepts a stream that the peer opened: its target is dialed.
    ///
    /// # Errors
    ///
    /// The ending, when the stream ended in the meantime.
    fn accept(&mut self, now: Time, id: StreamId) -> Result<(), Ending>;

    /// Abandons both halves. A stream that has ended stays as it is.
    fn reset(&mut self, id: StreamId, reason: Reason);

    /// Takes note that `length` bytes reached the socket behind this end, so that the peer may send
    /// more.
    fn consume(&mut self, id: StreamId, length: usize);

    /// Takes note that everything up to the peer's finish reached the socket behind this end,
    /// finish included.
    fn deliver(&mut self, id: StreamId);

    /// Detaches the stream from its user, who holds no handle and wants no events. A stream that
    /// its user finished goes on, as a socket does after close(2): what was written is still sent,
    /// and the peer's half ends with its finish. Bytes that the peer sends, and a linger timeout,
    /// abandon it. Any other stream is cancelled, as by [`Streams::release`].
    fn detach(&mut self, now: Time, id: StreamId);

    /// Takes no new streams from now on, and says so to the peer where the dialect can. Streams
    /// that are open go on.
    fn drain(&mut self);

    /// Ends the session and every stream of it. The peer is told why.
    fn end_session(&mut self, reason: Reason);

    /// Takes note that the link is lost: the session and every stream of it are over.
    fn handle_link_lost(&mut self);

    /// Takes note of time. Call it when [`Self::poll_timeout`] says so; calling it at other times
    /// is harmless.
    fn handle_timeout(&mut self, now: Time);

    /// Returns when [`Self::handle_timeout`] must be called next.
    fn poll_timeout(&self) -> Option<Time>;

    /// Whether there is something to send.
    fn has_transmit(&self) -> bool;

    /// Takes how long the last ping took to be answered, once for each ping. `None` where pings are
    /// the WebSocket's, which carry nothing by which to know them again.
    fn poll_rtt(&mut self) -> Option<Duration> {
        None
    }
}

/// The ending of a stream that is gone: only its own user can have released it.
const GONE: Ending = Ending::Reset(Reason::Cancelled, By::Us);
