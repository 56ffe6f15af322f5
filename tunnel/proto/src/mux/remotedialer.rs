//! Many connections over one link by remotedialer's rules: the second pure core.
//!
//! It has the grammar of [`Mux`](crate::mux::native::Mux) and tells the same events, and differs where the wire does: an open is not answered
//! and its opener may send at once; there is no half-close, so an `EOF` in either direction ends both, behind what was
//! sent before; there is no credit, so the receiver asks the sender to pause and ends a connection that goes on regardless.
//! Only the agent sends pings and the list of its connections. With the list it asks after each connection that was quiet, by
//! data of no bytes: a server that ended it without a word answers that there is none.
//!
//! Servers are each other's agents: one dials the other and announces whose streams can be opened through it.
//!
//! The list is where the original ends connections that are alive: it may have been made before the agent knew of one.
//! Here the server ends a connection that is missing from two lists in a row which came after the agent has
//! proved that it knew of it, by a message about it or by the answer to a later ping.

use std::collections::VecDeque;

use bytes::Bytes;

mod clients;
mod config;
mod ending;
mod receive;
mod stream;
mod sync;
mod text;
mod transmit;

#[cfg(test)]
mod tests;

use crate::mux::error::{By, Ending, OpenError, ReadError, Reason, SessionError, WriteError};
use crate::mux::remotedialer::clients::{Announcements, Clients};
pub use crate::mux::remotedialer::config::Config;
use crate::mux::remotedialer::stream::{Connection, Stream};
use crate::mux::stream::{Phase, ReceivePhase, SendPhase};
use crate::mux::table::Table;
use crate::mux::{Event, GONE};
use crate::wire::frame::{Side, StreamId};
use crate::wire::remotedialer::ADDRESS_MAX;
use crate::{Time, shrink};

/// One end of a session in remotedialer's dialect.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    /// How `connection not found` names the session: `clientKey/sessionKey`.
    name: Box<str>,
    config: Config,
    table: Table<Connection>,
    next_stream: u64,
    held: usize,
    answers: VecDeque<(i64, Answer)>,
    clients: Clients,
    announcements: Announcements,
    draining: bool,
    over: Option<SessionError>,
    last_heard: Time,
    next_ping: Time,
    ping: bool,
    next_sync: Time,
    sync: bool,
    /// The highest connection whose connect was sent.
    connected: u64,
    /// The highest connection that the peer has proved to know by the answer to a ping.
    proved: u64,
    probe: Probe,
}

/// What an error that belongs to no stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    NotFound,
    Because(Reason),
}

/// A ping whose answer proves which connects the peer has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Idle,
    Due,
    /// Sent when this was the highest connection.
    Sent(u64),
}

impl Mux {
    /// Creates one end of a session; `name` is `clientKey/sessionKey` for people who read errors.
    #[must_use]
    pub fn new(side: Side, name: &str, config: Config, now: Time) -> Self {
        Self {
            side,
            name: name.into(),
            config,
            table: Table::new(config.send_buffer, config.session_send_buffer),
            next_stream: FIRST_CONNECTION,
            held: 0,
            answers: VecDeque::new(),
            clients: Clients::default(),
            announcements: Announcements::default(),
            draining: false,
            over: None,
            last_heard: now,
            next_ping: now.saturating_add(config.ping_interval),
            ping: false,
            next_sync: now.saturating_add(config.sync_interval),
            sync: false,
            connected: 0,
            proved: 0,
            probe: Probe::Idle,
        }
    }

    /// Returns the number of streams that are alive or not yet released.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.table.streams.len()
    }

    /// Returns the bytes that arrived and were not consumed, of all streams.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Returns why the session is over, if it is.
    #[must_use]
    pub const fn over(&self) -> Option<SessionError> {
        self.over
    }

    /// Returns how a stream ended, if it has; one that is gone has.
    #[must_use]
    pub fn ending(&self, id: StreamId) -> Option<Ending> {
        self.table.ending(id)
    }

    /// Whether a stream is accepted, or opened by us, and has not ended.
    #[must_use]
    pub fn is_open(&self, id: StreamId) -> bool {
        self.table.is_open(id)
    }

    /// Opens a stream to `target`, which takes bytes at once. That it could not be dialed comes as [`Event::Ended`].
    ///
    /// # Errors
    ///
    /// [`OpenError`] when there cannot be a stream now; nothing has been sent then.
    pub fn open(&mut self, _now: Time, target: Bytes) -> Result<StreamId, OpenError> {
        if self.over.is_some() {
            return Err(OpenError::SessionOver);
        }
        if self.draining {
            return Err(OpenError::Draining);
        }
        if target.len() > ADDRESS_MAX {
            return Err(OpenError::TargetTooLong);
        }
        if self.table.streams.len() >= self.config.max_streams {
            return Err(OpenError::Busy);
        }
        let id = StreamId::new(self.next_stream).ok_or(OpenError::Busy)?;
        self.next_stream += 1;
        self.table.streams.insert(id, Stream::opened(target));
        self.table.queue_control(id);
        Ok(id)
    }

    /// Accepts a stream that the peer opened: its target is dialed.
    ///
    /// # Errors
    ///
    /// The ending, when the stream ended in the meantime.
    pub fn accept(&mut self, now: Time, id: StreamId) -> Result<(), Ending> {
        let stream = self.table.streams.get_mut(&id).ok_or(GONE)?;
        match stream.phase {
            Phase::Ended(ending) => Err(ending),
            Phase::Open => Ok(()),
            Phase::Opening => {
                stream.phase = Phase::Open;
                let orphan = stream.receive.phase == ReceivePhase::Finished;
                self.table.disarm(id);
                if orphan {
                    self.table
                        .arm(id, now.saturating_add(self.config.delivery_grace));
                }
                self.table.wake_writer(id);
                Ok(())
            }
        }
    }

    /// Returns how many bytes [`Self::write`] would take now, at least one.
    ///
    /// # Errors
    ///
    /// [`WriteError::Blocked`] promises an [`Event::Writable`]; the others are final.
    pub fn capacity(&mut self, id: StreamId) -> Result<usize, WriteError> {
        self.table.capacity(id)
    }

    /// Queues bytes of `data` to be sent and returns how many were taken, from the front and at least one unless `data` is empty.
    ///
    /// # Errors
    ///
    /// As [`Self::capacity`].
    pub fn write(&mut self, id: StreamId, data: Bytes) -> Result<usize, WriteError> {
        self.table.write(id, data)
    }

    /// Finishes the stream behind what was written: the dialect has no half-close, so the peer's half ends with ours. What arrived
    /// before can still be read.
    ///
    /// # Errors
    ///
    /// The ending, when the stream is over.
    pub fn finish(&mut self, id: StreamId) -> Result<(), Ending> {
        self.table.finish(id)
    }

    /// Abandons the stream. One that has ended stays as it is.
    pub fn reset(&mut self, id: StreamId, reason: Reason) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        if stream.ending().is_some() {
            return;
        }
        // The peer never hears of a stream whose connect still waits, and knows of an end that was told.
        let unknown = stream.own.connect.take().is_some();
        if !unknown && stream.send.phase != SendPhase::Finished {
            stream.own.error = Some(reason);
        }
        self.end_stream(id, Ending::Reset(reason, By::Us));
        self.table.queue_control(id);
    }

    /// Abandons the stream behind what was written.
    pub fn abort(&mut self, id: StreamId, reason: Reason) {
        if !self.table.abort(id, reason) {
            self.reset(id, reason);
        }
    }

    /// Takes up to `max` bytes that arrived; `None` after the end of the connection. They count as held until
    /// [`Self::consume`].
    ///
    /// # Errors
    ///
    /// [`ReadError::Blocked`] promises an [`Event::Readable`]; the other is final.
    pub fn read(&mut self, id: StreamId, max: usize) -> Result<Option<Bytes>, ReadError> {
        self.table.read(id, max)
    }

    /// Takes note that `length` bytes reached the socket behind this end.
    pub fn consume(&mut self, id: StreamId, length: usize) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        if stream.ending().is_some() {
            return;
        }
        let length = length.min(stream.own.held);
        stream.own.held -= length;
        stream.own.progress = true;
        self.held -= length;
        self.regulate(id);
    }

    /// Takes note that everything up to the end of the connection reached the socket behind this end.
    pub fn deliver(&mut self, id: StreamId) {
        if self.table.deliver(id).is_some() {
            self.end_if_complete(id);
        }
    }

    /// Gives the stream up: its user holds no handle and wants no events. A stream that has not ended is cancelled.
    pub fn release(&mut self, id: StreamId) {
        self.reset(id, Reason::Cancelled);
        self.table.release(id);
    }

    /// Takes no new streams from now on. The dialect cannot say so; the peer's connects are refused.
    pub const fn drain(&mut self) {
        self.draining = true;
    }

    /// Takes note of time. Call it when [`Self::poll_timeout`] says so; calling it at other times is harmless.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.over.is_some() {
            return;
        }
        if now >= self.last_heard.saturating_add(self.config.silence) {
            self.fail(SessionError::Silent, By::Us);
            return;
        }
        if self.side == Side::Agent && now >= self.next_ping {
            self.next_ping = now.saturating_add(self.config.ping_interval);
            self.ping = true;
        }
        if self.side == Side::Agent && now >= self.next_sync {
            self.next_sync = now.saturating_add(self.config.sync_interval);
            self.sync = true;
            self.ask_after_quiet();
        }
        while let Some(id) = self.table.expired(now) {
            let Some(stream) = self.table.streams.get_mut(&id) else {
                continue;
            };
            if stream.is_left() {
                self.reset(id, Reason::TimedOut);
            } else if stream.phase == Phase::Open && std::mem::take(&mut stream.own.progress) {
                self.table
                    .arm(id, now.saturating_add(self.config.delivery_grace));
            } else {
                self.end_stream(id, Ending::Reset(Reason::Cancelled, By::Peer));
            }
        }
    }

    /// Returns when [`Self::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.over.is_some() {
            return None;
        }
        let mut next = self.last_heard.saturating_add(self.config.silence);
        if self.side == Side::Agent {
            next = next.min(self.next_ping).min(self.next_sync);
        }
        let stream = self.table.next_deadline();
        Some(stream.map_or(next, |stream| stream.min(next)))
    }

    /// Takes the next piece of news.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        shrink::pop(&mut self.table.events)
    }
}

/// The first connection that a side opens; the original counts up from 1 before it uses the number.
const FIRST_CONNECTION: u64 = 2;
