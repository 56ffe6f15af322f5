//! Many streams over one link: a pure core.
//!
//! The core has no clock and does no I/O. Frames go in through [`Mux::handle_frame`], commands through the methods named for
//! them; frames come out of [`Mux::poll_transmit`], news out of [`Mux::poll_event`], the next deadline out of
//! [`Mux::poll_timeout`]. Time is always an argument, counted from an origin that the caller chooses.
//!
//! Nothing here is linear in the number of streams, except ending the whole session.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

mod config;
mod halves;
mod orphan;
mod receive;
mod transmit;
pub mod window;

#[cfg(test)]
mod tests;

pub use config::Config;

use crate::mux::error::{By, Ending, OpenError, ReadError, Reason, SessionError, WriteError};
use crate::mux::native::halves::{Due, Halves, Stream};
use crate::mux::native::window::{Budget, ReceiveWindow};
use crate::mux::stream::{Phase, ReceivePhase};
use crate::mux::table::Table;
use crate::mux::{Event, GONE, Glance};
use crate::wire::frame::{Side, StreamId, TARGET_MAX};
use crate::{Time, shrink};

/// One end of a session.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    config: Config,
    table: Table<Halves>,
    next_stream: u64,
    peer_highest: u64,
    budget: Budget,
    refusals: VecDeque<(StreamId, Reason)>,
    ping: Option<u64>,
    pong: Option<u64>,
    go_away: Option<Reason>,
    draining: bool,
    peer_draining: bool,
    over: Option<SessionError>,
    last_heard: Time,
    last_ping: Time,
    pings: u64,
    rtt: Option<Duration>,
    /// The round trip has not been told of.
    rtt_is_new: bool,
}

impl Mux {
    /// Creates one end of a session.
    #[must_use]
    pub fn new(side: Side, config: Config, now: Time) -> Self {
        Self {
            side,
            config,
            table: Table::new(config.send_buffer, config.session_send_buffer),
            next_stream: side.first_stream(),
            peer_highest: 0,
            budget: Budget::new(config.session_window),
            refusals: VecDeque::new(),
            ping: None,
            pong: None,
            go_away: None,
            draining: false,
            peer_draining: false,
            over: None,
            last_heard: now,
            last_ping: now,
            pings: 0,
            rtt: None,
            rtt_is_new: false,
        }
    }

    /// Returns the number of streams that are alive or not yet released.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.table.streams.len()
    }

    /// Returns the bytes of all streams that wait for the link.
    #[must_use]
    pub const fn send_buffered(&self) -> usize {
        self.table.buffered
    }

    /// Returns why the session is over, if it is.
    #[must_use]
    pub const fn over(&self) -> Option<SessionError> {
        self.over
    }

    /// Whether an open would be sent, to a peer that owes no answer to a ping for longer than [`Config::pong_due`].
    #[must_use]
    pub fn takes_opens(&self, now: Time) -> bool {
        let draining = self.draining || self.peer_draining;
        let silent = now.saturating_sub(self.last_heard);
        let owes = silent
            > self
                .config
                .ping_interval
                .saturating_add(self.config.pong_due);
        self.over.is_none() && !draining && !owes
    }

    /// Returns how a stream ended, if it has; one that is gone has.
    #[must_use]
    pub fn ending(&self, id: StreamId) -> Option<Ending> {
        self.table.ending(id)
    }

    /// Whether a stream is accepted and has not ended.
    #[must_use]
    pub fn is_open(&self, id: StreamId) -> bool {
        self.table.is_open(id)
    }

    /// Opens a stream to `target`. The peer's answer comes as [`Event::Accepted`] or [`Event::Ended`], at the latest after
    /// [`Config::open_timeout`]; a reset cancels the open.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when there cannot be a stream now; nothing has been sent then.
    pub fn open(&mut self, now: Time, target: Bytes) -> Result<StreamId, OpenError> {
        if self.over.is_some() {
            return Err(OpenError::SessionOver);
        }
        if self.draining || self.peer_draining {
            return Err(OpenError::Draining);
        }
        if target.len() > TARGET_MAX {
            return Err(OpenError::TargetTooLong);
        }
        if self.table.streams.len() >= self.config.max_streams {
            return Err(OpenError::Busy);
        }
        let id = StreamId::new(self.next_stream).ok_or(OpenError::Busy)?;
        self.next_stream = self.next_stream.checked_add(2).ok_or(OpenError::Busy)?;
        let mut halves = Halves::new(ReceiveWindow::open(&self.config, &mut self.budget));
        halves.due.open = Some(target);
        self.table.streams.insert(id, Stream::new(halves));
        self.table
            .arm(id, now.saturating_add(self.config.open_timeout));
        self.table.queue_control(id);
        Ok(id)
    }

    /// Accepts a stream that the peer opened: its target is dialed.
    ///
    /// # Errors
    ///
    /// The ending, when the stream ended in the meantime.
    pub fn accept(&mut self, id: StreamId) -> Result<(), Ending> {
        let stream = self.table.streams.get_mut(&id).ok_or(GONE)?;
        match stream.phase {
            Phase::Ended(ending) => Err(ending),
            Phase::Open => Ok(()),
            Phase::Opening if id.opener() == self.side => Ok(()),
            Phase::Opening => {
                stream.phase = Phase::Open;
                stream.own.due.accept = true;
                self.table.queue_control(id);
                self.table.queue_data(id);
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

    /// Finishes our half once everything that was written is sent. Finishing again changes nothing.
    ///
    /// # Errors
    ///
    /// The ending, when the stream is over.
    pub fn finish(&mut self, id: StreamId) -> Result<(), Ending> {
        self.table.finish(id)
    }

    /// Abandons both halves. A stream that has ended stays as it is.
    pub fn reset(&mut self, id: StreamId, reason: Reason) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        if stream.ending().is_some() {
            return;
        }
        // The peer never hears of a stream whose open was still waiting for the link.
        if stream.own.due.open.take().is_none() {
            stream.own.due.reset = Some(reason);
        }
        self.end_stream(id, Ending::Reset(reason, By::Us));
        self.table.queue_control(id);
    }

    /// Abandons both halves behind what was written: the reset goes out when the last queued byte has. What the peer
    /// sends in the meantime is of no use any more.
    pub fn abort(&mut self, id: StreamId, reason: Reason) {
        if !self.table.abort(id, reason) {
            self.reset(id, reason);
        }
    }

    /// Takes up to `max` bytes that arrived; `None` after the peer's finish. After a reset because the peer's socket broke
    /// ([`Reason::Aborted`]) what arrived before it comes first, after any other reset it is gone. Bytes still count against the peer's credit until
    /// [`Self::consume`].
    ///
    /// # Errors
    ///
    /// [`ReadError::Blocked`] promises an [`Event::Readable`]; the other is final.
    pub fn read(&mut self, id: StreamId, max: usize) -> Result<Option<Bytes>, ReadError> {
        self.table.read(id, max)
    }

    /// Takes note that `length` bytes reached the socket behind this end, so that the peer gets its credit back.
    pub fn consume(&mut self, id: StreamId, length: usize) {
        let Some(stream) = self.table.streams.get_mut(&id) else {
            return;
        };
        if stream.ending().is_some() {
            return;
        }
        stream
            .own
            .receive
            .consume(length, &self.config, &mut self.budget);
        if stream.receive.phase == ReceivePhase::Open && stream.own.receive.is_due() {
            stream.own.due.window = true;
            self.table.queue_control(id);
        }
    }

    /// Takes note that everything up to the peer's finish reached the socket behind this end, finish included.
    pub fn deliver(&mut self, id: StreamId) {
        let Some(stream) = self.table.deliver(id) else {
            return;
        };
        stream.own.due.delivered = true;
        if stream.is_complete() {
            self.end_stream(id, Ending::Finished);
        }
        self.table.queue_control(id);
    }

    /// Gives the stream up: its user holds no handle and wants no events. A stream that has not ended is cancelled.
    pub fn release(&mut self, id: StreamId) {
        self.reset(id, Reason::Cancelled);
        self.table.release(id);
    }

    /// Takes no new streams from now on and says so to the peer. Those that are open go on.
    pub fn drain(&mut self) {
        if !self.draining && self.over.is_none() {
            self.draining = true;
            self.go_away = Some(Reason::Draining);
        }
    }

    /// Ends the session and every stream of it. One last frame tells the peer why.
    pub fn end_session(&mut self, reason: Reason) {
        if self.over.is_none() {
            self.fail(SessionError::Ended(reason), By::Us);
            self.go_away = Some(reason);
        }
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
        if now >= self.next_ping() {
            self.last_ping = now;
            self.pings = self.pings.wrapping_add(1);
            self.ping = Some(self.pings);
        }
        while let Some(id) = self.table.expired(now) {
            let stream = self.table.streams.get(&id);
            if stream.is_some_and(|stream| stream.phase == Phase::Opening || stream.is_left()) {
                self.reset(id, Reason::TimedOut);
            }
        }
    }

    /// Returns when [`Self::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.over.is_some() {
            return None;
        }
        let alive = self
            .next_ping()
            .min(self.last_heard.saturating_add(self.config.silence));
        let open = self.table.next_deadline();
        Some(open.map_or(alive, |open| open.min(alive)))
    }

    /// Takes the next piece of news.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        shrink::pop(&mut self.table.events)
    }

    fn next_ping(&self) -> Time {
        self.last_heard
            .max(self.last_ping)
            .saturating_add(self.config.ping_interval)
    }

    /// The one function through which a stream ends: credit goes back here.
    fn end_stream(&mut self, id: StreamId, ending: Ending) {
        let Some(stream) = self.table.end(id, ending) else {
            return;
        };
        let due = &mut stream.own.due;
        due.accept = false;
        due.window = false;
        if let Ending::Reset(..) = ending {
            due.delivered = false;
        }
        stream.own.receive.release(&mut self.budget);
        self.table.wake_starved();
        self.table.forget_if_gone(id);
    }

    fn fail(&mut self, error: SessionError, by: By) {
        if self.over.is_some() {
            return;
        }
        let reason = error.reason();
        self.over = Some(error);
        self.table.schedule.clear();
        self.refusals.clear();
        self.ping = None;
        self.pong = None;
        for id in self.table.ids() {
            self.end_stream(id, Ending::Reset(reason, by));
            if let Some(stream) = self.table.streams.get_mut(&id) {
                stream.own.due = Due::default();
            }
            self.table.forget_if_gone(id);
        }
        self.table.events.push_back(Event::SessionOver(error));
    }
}

impl Mux {
    /// Looks at the session and at most `max` of its streams.
    #[must_use]
    pub fn glance(&self, max: usize) -> Glance {
        self.table.glance(max, self.rtt)
    }

    /// Takes how long the last ping took to be answered, once for each ping.
    pub fn poll_rtt(&mut self) -> Option<Duration> {
        std::mem::take(&mut self.rtt_is_new).then_some(self.rtt)?
    }
}
