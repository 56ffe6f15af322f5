//! Many streams over one link, in the dialect `watertight.v1`: a pure core.
//!
//! Frames go in through [`Mux::handle_frame`] and come out of [`Mux::poll_transmit`]. Commands,
//! events and deadlines are those of the traits [`crate::mux::Mux`] and [`crate::mux::Streams`].

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

mod config;
mod halves;
mod receive;
mod transmit;
pub mod window;

#[cfg(test)]
mod tests;

pub use config::Config;

use crate::Time;
use crate::mux::error::{By, Ending, OpenError, Reason, SessionError};
use crate::mux::native::halves::{Due, Halves, Stream};
use crate::mux::native::window::{Budget, ReceiveWindow};
use crate::mux::stream::{Phase, ReceivePhase};
use crate::mux::streams::Core;
use crate::mux::table::Table;
use crate::mux::{Event, GONE, Streams as _};
use crate::replicas::Health;
use crate::wire::frame::{Side, StreamId, TARGET_MAX};

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
    last_received: Time,
    last_ping: Time,
    /// When the ping was sent which nothing has followed from the peer.
    unanswered: Option<Time>,
    pings: u64,
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
            last_received: now,
            last_ping: now,
            unanswered: None,
            pings: 0,
            rtt_is_new: false,
        }
    }

    /// Returns the bytes of all streams that wait for the link.
    #[must_use]
    pub const fn send_buffered(&self) -> usize {
        self.table.buffered
    }

    fn next_ping(&self) -> Time {
        self.last_received
            .max(self.last_ping)
            .saturating_add(self.config.ping_interval)
    }

    fn queue_ping(&mut self, now: Time) {
        self.last_ping = now;
        self.unanswered.get_or_insert(now);
        self.pings = self.pings.wrapping_add(1);
        self.ping = Some(self.pings);
    }

    /// The one function through which a stream ends: credit goes back here.
    fn end_stream(&mut self, id: StreamId, ending: Ending) {
        let Some(stream) = self.table.end(id, ending) else {
            return;
        };
        let due = &mut stream.ext.due;
        due.accept = false;
        due.window = false;
        if let Ending::Reset(..) = ending {
            due.delivered = false;
        }
        stream.ext.receive.release(&mut self.budget);
        self.table.wake_starved();
        self.table.forget_if_gone(id);
    }

    fn fail(&mut self, error: SessionError, by: By) {
        if self.table.over.is_some() {
            return;
        }
        let reason = error.reason();
        self.table.over = Some(error);
        self.table.schedule.clear();
        self.refusals.clear();
        self.ping = None;
        self.pong = None;
        for id in self.table.ids() {
            self.end_stream(id, Ending::Reset(reason, by));
            if let Some(stream) = self.table.streams.get_mut(&id) {
                stream.ext.due = Due::default();
            }
            self.table.forget_if_gone(id);
        }
        self.table.events.push_back(Event::SessionOver(error));
    }
}

impl crate::mux::Mux for Mux {
    fn health(&self, now: Time) -> Health {
        let Config {
            ping_interval,
            pong_due,
            ..
        } = self.config;
        if self.table.over.is_some() || self.draining || self.peer_draining {
            return Health::Draining;
        }
        let silent = now.saturating_sub(self.last_received);
        let waited = self.unanswered.map(|since| now.saturating_sub(since));
        if silent > ping_interval.saturating_add(pong_due)
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
            self.queue_ping(now);
        }
    }

    fn open(&mut self, now: Time, target: Bytes) -> Result<StreamId, OpenError> {
        if self.table.over.is_some() {
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

    fn accept(&mut self, _now: Time, id: StreamId) -> Result<(), Ending> {
        let stream = self.table.streams.get_mut(&id).ok_or(GONE)?;
        match stream.phase {
            Phase::Ended(ending) => Err(ending),
            Phase::Open => Ok(()),
            Phase::Opening if id.opener() == self.side => Ok(()),
            Phase::Opening => {
                stream.phase = Phase::Open;
                stream.ext.due.accept = true;
                self.table.queue_control(id);
                self.table.queue_data(id);
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
        // The peer never hears of a stream whose open was still waiting for the link.
        if stream.ext.due.open.take().is_none() {
            stream.ext.due.reset = Some(reason);
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
        stream
            .ext
            .receive
            .consume(length, &self.config, &mut self.budget);
        if stream.receive.phase == ReceivePhase::Open && stream.ext.receive.is_due() {
            stream.ext.due.window = true;
            self.table.queue_control(id);
        }
    }

    fn deliver(&mut self, id: StreamId) {
        let Some(stream) = self.table.deliver(id) else {
            return;
        };
        stream.ext.due.delivered = true;
        if stream.is_complete() {
            self.end_stream(id, Ending::Finished);
        }
        self.table.queue_control(id);
    }

    fn detach(&mut self, now: Time, id: StreamId) {
        let Some(stream) = self.table.streams.get_mut(&id).filter(|it| it.can_detach()) else {
            self.release(id);
            return;
        };
        stream.released = true;
        let finished = stream.receive.phase == ReceivePhase::Finished;
        let linger_timeout = self.config.linger_timeout;
        self.table.arm(id, now.saturating_add(linger_timeout));
        if finished {
            self.deliver(id);
        }
    }

    fn drain(&mut self) {
        if !self.draining && self.table.over.is_none() {
            self.draining = true;
            self.go_away = Some(Reason::Draining);
        }
    }

    fn end_session(&mut self, reason: Reason) {
        if self.table.over.is_none() {
            self.fail(SessionError::Ended(reason), By::Us);
            self.go_away = Some(reason);
        }
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
        if now >= self.next_ping() {
            self.queue_ping(now);
        }
        while let Some(id) = self.table.expired(now) {
            let stream = self.table.streams.get(&id);
            if stream.is_some_and(|stream| stream.phase == Phase::Opening || stream.is_orphaned()) {
                self.reset(id, Reason::TimedOut);
            }
        }
    }

    fn poll_timeout(&self) -> Option<Time> {
        if self.table.over.is_some() {
            return None;
        }
        let alive = self
            .next_ping()
            .min(self.last_received.saturating_add(self.config.silence));
        let open = self.table.next_deadline();
        Some(open.map_or(alive, |open| open.min(alive)))
    }

    fn has_transmit(&self) -> bool {
        self.pong.is_some()
            || self.ping.is_some()
            || self.go_away.is_some()
            || !self.refusals.is_empty()
            || !self.table.schedule.is_idle()
    }

    fn poll_rtt(&mut self) -> Option<Duration> {
        std::mem::take(&mut self.rtt_is_new).then_some(self.table.rtt)?
    }
}

impl Core for Mux {
    type Ext = Halves;

    fn table(&self) -> &Table<Halves> {
        &self.table
    }

    fn table_mut(&mut self) -> &mut Table<Halves> {
        &mut self.table
    }
}
