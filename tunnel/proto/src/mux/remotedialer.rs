//! Many connections over one link by remotedialer's rules: the second pure core.
//!
//! It has the grammar of [`Mux`](crate::mux::native::Mux) and tells the same events, and differs
//! where the wire does: an open is not answered and its opener may send at once; there is no
//! half-close, so an `EOF` in either direction ends both, behind what was sent before; there is no
//! credit, so the receiver asks the sender to pause and ends a connection that goes on regardless.
//! Only the agent sends pings and the list of its connections. With the list it asks after each
//! connection that was idle, by data of no bytes: a server that ended it without a word answers
//! that there is none.
//!
//! Servers are each other's agents: one dials the other and announces whose streams can be opened
//! through it.
//!
//! The list is where the original ends connections that are alive: it may have been made before the
//! agent knew of one. Here the server ends a connection that is missing from two lists in a row
//! which came after the agent has proved that it knew of it, by a message about it or by the answer
//! to a later ping.

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

use crate::Time;
use crate::mux::error::{By, Ending, OpenError, Reason, SessionError};
use crate::mux::remotedialer::clients::{Announcements, Clients};
pub use crate::mux::remotedialer::config::Config;
use crate::mux::remotedialer::stream::{Connection, Stream};
use crate::mux::stream::{Phase, ReceivePhase, SendPhase};
use crate::mux::streams::Core;
use crate::mux::table::Table;
use crate::mux::{GONE, Streams as _};
use crate::replicas::Health;
use crate::wire::frame::{Side, StreamId};
use crate::wire::remotedialer::ADDRESS_MAX;

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
    last_received: Time,
    /// When the peer was probed and nothing has come from it since.
    unanswered: Option<Time>,
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
            last_received: now,
            unanswered: None,
            next_ping: now.saturating_add(config.ping_interval),
            ping: false,
            next_sync: now.saturating_add(config.sync_interval),
            sync: false,
            connected: 0,
            proved: 0,
            probe: Probe::Idle,
        }
    }

    /// Returns the bytes that arrived and were not consumed, of all streams.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }
}

/// The first connection that a side opens; the original counts up from 1 before it uses the number.
const FIRST_CONNECTION: u64 = 2;

impl crate::mux::Mux for Mux {
    fn health(&self, now: Time) -> Health {
        let Config {
            ping_interval,
            pong_due,
            ..
        } = self.config;
        if self.table.over.is_some() || self.draining {
            return Health::Draining;
        }
        let silent = now.saturating_sub(self.last_received);
        let waited = self.unanswered.map(|since| now.saturating_sub(since));
        // Only the agent pings by itself. It may miss one.
        if silent > ping_interval.saturating_mul(2).saturating_add(pong_due)
            || waited.is_some_and(|waited| waited > pong_due)
        {
            return Health::Overdue;
        }
        Health::Live
    }

    fn probe(&mut self, now: Time) {
        let silent = now.saturating_sub(self.last_received);
        if self.table.over.is_none() && self.unanswered.is_none() && silent >= self.config.pong_due
        {
            // A second ping on the way could have its answer taken for that of the first.
            if self.probe == Probe::Idle {
                self.probe = Probe::Due;
            }
            self.unanswered = Some(now);
        }
    }

    fn open(&mut self, _now: Time, target: Bytes) -> Result<StreamId, OpenError> {
        if self.table.over.is_some() {
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

    fn accept(&mut self, now: Time, id: StreamId) -> Result<(), Ending> {
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

    fn reset(&mut self, id: StreamId, reason: Reason) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        if stream.ending().is_some() {
            return;
        }
        // The peer never hears of a stream whose connect still waits, and knows of an end that was
        // told.
        let unknown = stream.ext.connect.take().is_some();
        if !unknown && stream.send.phase != SendPhase::Finished {
            stream.ext.error = Some(reason);
        }
        self.end_stream(id, Ending::Reset(reason, By::Us));
        self.table.queue_control(id);
    }

    fn consume(&mut self, id: StreamId, length: usize) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        if stream.ending().is_some() {
            return;
        }
        let length = length.min(stream.ext.held);
        stream.ext.held -= length;
        stream.ext.progress = true;
        self.held -= length;
        self.regulate(id);
    }

    fn deliver(&mut self, id: StreamId) {
        if self.table.deliver(id).is_some() {
            self.end_if_complete(id);
        }
    }

    fn detach(&mut self, now: Time, id: StreamId) {
        let stream = self.table.streams.get_mut(&id);
        let Some(stream) = stream.filter(|stream| stream.can_detach()) else {
            self.release(id);
            return;
        };
        stream.released = true;
        let grace = self.config.delivery_grace;
        self.table.arm(id, now.saturating_add(grace));
        self.deliver(id);
    }

    fn drain(&mut self) {
        self.draining = true;
    }

    fn end_session(&mut self, reason: Reason) {
        if self.table.over.is_some() {
            return;
        }
        let known = |stream: &Stream| stream.ending().is_none() && stream.ext.connect.is_none();
        let told: Vec<i64> = self
            .table
            .streams
            .iter()
            .filter(|(_, stream)| known(stream))
            .map(|(id, _)| id.number().cast_signed())
            .collect();
        self.fail(SessionError::Ended(reason), By::Us);
        let answer = Answer::Because(Reason::SessionOver);
        self.answers
            .extend(told.into_iter().map(|connection| (connection, answer)));
    }

    fn handle_link_lost(&mut self) {
        self.fail(SessionError::Ended(Reason::SessionOver), By::Peer);
    }

    fn handle_timeout(&mut self, now: Time) {
        if self.table.over.is_some() {
            return;
        }
        if now >= self.last_received.saturating_add(self.config.silence) {
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
            self.probe_idle();
        }
        while let Some(id) = self.table.expired(now) {
            let Some(stream) = self.table.streams.get_mut(&id) else {
                continue;
            };
            if stream.is_orphaned() {
                self.reset(id, Reason::TimedOut);
            } else if stream.phase == Phase::Open && std::mem::take(&mut stream.ext.progress) {
                self.table
                    .arm(id, now.saturating_add(self.config.delivery_grace));
            } else {
                self.end_stream(id, Ending::Reset(Reason::Cancelled, By::Peer));
            }
        }
    }

    fn poll_timeout(&self) -> Option<Time> {
        if self.table.over.is_some() {
            return None;
        }
        let mut next = self.last_received.saturating_add(self.config.silence);
        if self.side == Side::Agent {
            next = next.min(self.next_ping).min(self.next_sync);
        }
        let stream = self.table.next_deadline();
        Some(stream.map_or(next, |stream| stream.min(next)))
    }

    fn has_transmit(&self) -> bool {
        self.ping
            || self.probe == Probe::Due
            || self.sync
            || !self.answers.is_empty()
            || !self.announcements.is_empty()
            || !self.table.schedule.is_idle()
    }
}

impl Core for Mux {
    type Ext = Connection;

    fn table(&self) -> &Table<Connection> {
        &self.table
    }

    fn table_mut(&mut self) -> &mut Table<Connection> {
        &mut self.table
    }
}
