//! How streams and the session come to their end.

use super::clients::Clients;
use super::stream::Stream;
use super::{Answer, Legacy, Probe};
use crate::mux::error::{By, Ending, Reason, SessionError};
use crate::mux::frame::StreamId;
use crate::mux::stream::Phase;
use crate::mux::{Event, Time};

impl Legacy {
    /// Ends the session and every stream of it; the peer is told of each.
    pub fn end_session(&mut self, reason: Reason) {
        if self.over.is_some() {
            return;
        }
        let known = |stream: &Stream| stream.ending().is_none() && stream.connect.is_none();
        let told: Vec<i64> = self
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

    pub(super) fn arm(&mut self, id: StreamId, deadline: Time) {
        self.disarm(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.deadline = Some(deadline);
            self.deadlines.insert((deadline, id));
        }
    }

    pub(super) fn disarm(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && let Some(deadline) = stream.deadline.take()
        {
            self.deadlines.remove(&(deadline, id));
        }
    }

    pub(super) fn end_if_complete(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(Stream::is_complete) {
            self.end_stream(id, Ending::Finished);
            self.forget_if_gone(id);
        }
    }

    /// The one function through which a stream ends: buffers go back here, and the event is told here.
    pub(super) fn end_stream(&mut self, id: StreamId, ending: Ending) {
        self.disarm(id);
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.ending().is_some() {
            return;
        }
        stream.phase = Phase::Ended(ending);
        self.held -= std::mem::take(&mut stream.receive.held);
        self.send_buffered = self.send_buffered.saturating_sub(stream.send.queue.clear());
        // What a peer sent before its socket broke may still be passed on.
        if !matches!(ending, Ending::Reset(Reason::Aborted, By::Peer)) {
            stream.receive.queue.clear();
        }
        self.events.push_back(Event::Ended { stream: id, ending });
        self.wake_starved();
    }

    pub(super) fn fail(&mut self, error: SessionError, by: By) {
        if self.over.is_some() {
            return;
        }
        let reason = error.reason();
        self.over = Some(error);
        self.schedule.clear();
        self.answers.clear();
        self.clients = Clients::default();
        self.announcements.clear();
        (self.ping, self.sync, self.probe) = (false, false, Probe::Idle);
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            self.end_stream(id, Ending::Reset(reason, by));
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.connect = None;
                stream.error = None;
            }
            self.forget_if_gone(id);
        }
        self.events.push_back(Event::SessionOver(error));
    }
}
