//! How streams and the session come to their end.

use crate::Time;
use crate::mux::Event;
use crate::mux::error::{By, Ending, Reason, SessionError};
use crate::mux::remotedialer::clients::Clients;
use crate::mux::remotedialer::stream::Stream;
use crate::mux::remotedialer::{Answer, Mux, Probe};
use crate::mux::stats::Glance;
use crate::wire::frame::StreamId;

impl Mux {
    /// Looks at the session and at most `max` of its streams.
    #[must_use]
    pub fn glance(&self, max: usize) -> Glance {
        self.table.glance(max, None)
    }

    /// Ends the session and every stream of it; the peer is told of each.
    pub fn end_session(&mut self, reason: Reason) {
        if self.over.is_some() {
            return;
        }
        let known = |stream: &Stream| stream.ending().is_none() && stream.own.connect.is_none();
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

    /// Takes note that the link is lost: the session and every stream of it are over.
    pub fn handle_link_lost(&mut self) {
        self.fail(SessionError::Ended(Reason::SessionOver), By::Peer);
    }

    /// Lets go of a stream: its user holds no handle and wants no events. One that its user finished ends when what was written is
    /// sent, or is abandoned after [`Config::delivery_grace`](crate::mux::remotedialer::Config::delivery_grace); any other is cancelled.
    pub fn leave(&mut self, now: Time, id: StreamId) {
        let stream = self.table.streams.get_mut(&id);
        let Some(stream) = stream.filter(|stream| stream.may_leave()) else {
            self.release(id);
            return;
        };
        stream.released = true;
        let grace = self.config.delivery_grace;
        self.table.arm(id, now.saturating_add(grace));
        self.deliver(id);
    }

    pub(crate) fn end_if_complete(&mut self, id: StreamId) {
        if self.table.streams.get(&id).is_some_and(Stream::is_complete) {
            self.end_stream(id, Ending::Finished);
            self.table.forget_if_gone(id);
        }
    }

    /// The one function through which a stream ends: what it held is given back here.
    pub(crate) fn end_stream(&mut self, id: StreamId, ending: Ending) {
        if let Some(stream) = self.table.end(id, ending) {
            self.held -= std::mem::take(&mut stream.own.held);
            self.table.wake_starved();
            self.table.forget_if_gone(id);
        }
    }

    pub(crate) fn fail(&mut self, error: SessionError, by: By) {
        if self.over.is_some() {
            return;
        }
        let reason = error.reason();
        self.over = Some(error);
        self.table.schedule.clear();
        self.answers.clear();
        self.clients = Clients::default();
        self.announcements.clear();
        (self.ping, self.sync, self.probe) = (false, false, Probe::Idle);
        for id in self.table.ids() {
            self.end_stream(id, Ending::Reset(reason, by));
            if let Some(stream) = self.table.streams.get_mut(&id) {
                stream.own.connect = None;
                stream.own.error = None;
            }
            self.table.forget_if_gone(id);
        }
        self.table.events.push_back(Event::SessionOver(error));
    }
}
