//! How streams and the session come to their end.

use crate::mux::Event;
use crate::mux::error::{By, Ending, SessionError};
use crate::mux::remotedialer::clients::Clients;
use crate::mux::remotedialer::stream::Stream;
use crate::mux::remotedialer::{Mux, Probe};
use crate::wire::frame::StreamId;

impl Mux {
    pub(crate) fn end_if_complete(&mut self, id: StreamId) {
        if self.table.streams.get(&id).is_some_and(Stream::is_complete) {
            self.end_stream(id, Ending::Finished);
            self.table.forget_if_gone(id);
        }
    }

    /// The one function through which a stream ends: what it held is given back here.
    pub(crate) fn end_stream(&mut self, id: StreamId, ending: Ending) {
        if let Some(stream) = self.table.end(id, ending) {
            self.held -= std::mem::take(&mut stream.ext.held);
            self.table.wake_starved();
            self.table.forget_if_gone(id);
        }
    }

    pub(crate) fn fail(&mut self, error: SessionError, by: By) {
        if self.table.over.is_some() {
            return;
        }
        let reason = error.reason();
        self.table.over = Some(error);
        self.table.schedule.clear();
        self.answers.clear();
        self.clients = Clients::default();
        self.announcements.clear();
        (self.ping, self.sync, self.probe) = (false, false, Probe::Idle);
        for id in self.table.ids() {
            self.end_stream(id, Ending::Reset(reason, by));
            if let Some(stream) = self.table.streams.get_mut(&id) {
                stream.ext.connect = None;
                stream.ext.error = None;
            }
            self.table.forget_if_gone(id);
        }
        self.table.events.push_back(Event::SessionOver(error));
    }
}
