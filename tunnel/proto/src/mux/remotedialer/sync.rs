//! Heartbeats and the agent's list of connections.

use std::collections::HashSet;

use crate::Time;
use crate::mux::error::{By, Ending, Reason};
use crate::mux::remotedialer::stream::{connection, stream_of};
use crate::mux::remotedialer::{Answer, Mux, Probe};
use crate::wire::frame::{Side, StreamId};

/// So many lists in a row must miss a connection that the peer knew of. The first may have been
/// made before the peer's proof and sent behind it; the second was made after the first was sent.
const MISSED_MAX: u8 = 2;

impl Mux {
    /// Takes note of a ping or a pong.
    pub fn handle_heartbeat(&mut self, now: Time, pong: bool) {
        self.last_received = self.last_received.max(now);
        self.unanswered = None;
        if let (true, Probe::Sent(connected)) = (pong, self.probe) {
            self.probe = Probe::Idle;
            self.proved = self.proved.max(connected);
        }
    }

    /// Whether a ping is to be sent now.
    #[must_use]
    pub fn poll_ping(&mut self) -> bool {
        if self.probe == Probe::Due {
            self.probe = Probe::Sent(self.connected);
            return true;
        }
        std::mem::take(&mut self.ping)
    }

    /// Returns the connections that live here.
    pub(crate) fn list(&self) -> Vec<i64> {
        let mut connections: Vec<i64> = self
            .table
            .streams
            .iter()
            .filter(|(_, stream)| stream.ending().is_none())
            .map(|(id, _)| connection(*id))
            .collect();
        connections.sort_unstable();
        connections
    }

    /// Asks the peer after every connection that was idle since the last time. The original ends a
    /// connection that it misses in a list without a word, and a list is all that it is sent.
    pub(crate) fn probe_idle(&mut self) {
        let mut idle = Vec::new();
        for (id, stream) in &mut self.table.streams {
            if stream.sends() && std::mem::replace(&mut stream.ext.idle, true) {
                stream.ext.probe = true;
                idle.push(*id);
            }
        }
        for id in idle {
            self.table.queue_control(id);
        }
    }

    /// Makes both ends agree on which connections live.
    pub(crate) fn recv_sync(&mut self, connections: Vec<i64>) {
        if self.side == Side::Agent {
            return;
        }
        // What the peer has and we do not: an end that it was never told of.
        for connection in &connections {
            let alive =
                stream_of(*connection).is_some_and(|id| self.table.streams.contains_key(&id));
            if !alive {
                self.answer(*connection, Answer::NotFound);
            }
        }
        let listed: HashSet<StreamId> = connections.into_iter().filter_map(stream_of).collect();
        let mut orphans = Vec::new();
        for (id, stream) in &mut self.table.streams {
            if stream.ending().is_some() || stream.ext.connect.is_some() {
                continue;
            }
            if listed.contains(id) {
                stream.mark_known();
            } else if stream.ext.known || id.number() <= self.proved {
                stream.ext.missed += 1;
                if stream.ext.missed >= MISSED_MAX {
                    orphans.push(*id);
                }
            } else if self.probe == Probe::Idle {
                self.probe = Probe::Due;
            }
        }
        for id in orphans {
            if let Some(stream) = self.table.streams.get_mut(&id) {
                stream.ext.error = Some(Reason::Cancelled);
            }
            self.end_stream(id, Ending::Reset(Reason::Aborted, By::Peer));
            self.table.queue_control(id);
        }
    }
}
