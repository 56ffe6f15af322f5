//! The metrics of one session, and of the link to one peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tunnel_proto::mux::Reason;
use tunnel_proto::target::Target;
use tunnel_proto::wire::handshake::Party;

use crate::metrics::remotedialer::{Added, ClientBytes, PeerCounters};
use crate::metrics::streams::StreamMetrics;
use crate::metrics::{Metrics, Timeout, Transmitted};

impl Metrics {
    /// Counts a session that begins. `client` is the name of the agent or the peer.
    #[must_use]
    pub fn session_began(self: &Arc<Self>, client: &str, party: Party) -> SessionMetrics {
        self.sessions.inc();
        self.lifetimes.sessions_opened.inc();
        let remotedialer = self.remotedialer.as_ref();
        let added = remotedialer.and_then(|counters| match party {
            Party::Agent => Some(counters.session(client, false)),
            Party::Peer => Some(counters.session(client, true)),
            // rancher/remotedialer counts only what such a session carries.
            Party::Server => None,
        });
        SessionMetrics {
            inner: Some(SessionInner {
                metrics: Arc::clone(self),
                bytes: remotedialer.map(|counters| counters.bytes(client)),
                client: client.to_owned(),
                added,
                over: AtomicBool::new(false),
            }),
        }
    }

    /// Returns the metrics of the link to one peer. The caller must bound the number of peers.
    #[must_use]
    pub fn peer(&self, id: &str) -> PeerMetrics {
        PeerMetrics {
            counters: self.remotedialer.as_ref().map(|counters| counters.peer(id)),
        }
    }
}

/// The metrics of one session. Dropping it counts the end of the session.
#[derive(Debug, Default)]
pub struct SessionMetrics {
    inner: Option<SessionInner>,
}

#[derive(Debug)]
struct SessionInner {
    metrics: Arc<Metrics>,
    client: String,
    bytes: Option<ClientBytes>,
    added: Option<Added>,
    over: AtomicBool,
}

impl SessionMetrics {
    /// Counts a stream to `target`. It also creates the series that counts its end, so that the two
    /// can be subtracted.
    #[must_use]
    pub fn stream_began(&self, target: &Target) -> StreamMetrics {
        let Some(inner) = &self.inner else {
            return StreamMetrics::default();
        };
        inner.metrics.streams.inc();
        inner.metrics.lifetimes.streams_opened.inc();
        let remotedialer = inner.metrics.remotedialer.as_ref();
        let added = remotedialer.map(|counters| counters.connection(&inner.client, target));
        StreamMetrics::new(Arc::clone(&inner.metrics), added)
    }

    /// Counts a stream that is reset because of a timeout.
    pub fn timed_out(&self, timeout: Timeout) {
        if let Some(inner) = &self.inner {
            inner.metrics.stream_timed_out(timeout);
        }
    }

    /// Counts the time that a stream waits because of its agent's limit of bytes per second.
    pub fn throttled(&self, wait: Duration) {
        if let Some(inner) = &self.inner {
            inner.metrics.throttled.inc_by(wait.as_secs_f64());
        }
    }

    /// Counts payload bytes that were sent to the peer.
    pub fn sent(&self, bytes: usize) {
        if let Some(inner) = &self.inner {
            inner.metrics.sent.inc_by(bytes as u64);
        }
    }

    /// Counts payload bytes that came from the peer and were passed on.
    pub fn received(&self, bytes: usize) {
        if let Some(inner) = &self.inner {
            inner.metrics.received.inc_by(bytes as u64);
            if let Some(counters) = &inner.bytes {
                counters.received(bytes);
            }
        }
    }

    /// Counts messages that were sent over the link.
    pub fn transmitted(&self, transmitted: Transmitted) {
        if let Some(counters) = self.inner.as_ref().and_then(|inner| inner.bytes.as_ref()) {
            counters.transmitted(transmitted);
        }
    }

    /// Records the round-trip time of a ping.
    pub fn pong(&self, after: Duration) {
        if let Some(inner) = &self.inner {
            inner.metrics.lifetimes.pong(after);
        }
    }

    /// Counts the end of the session. Further calls have no effect.
    pub fn over(&self, reason: Reason) {
        if let Some(inner) = &self.inner
            && !inner.over.swap(true, Ordering::Relaxed)
        {
            inner.metrics.sessions.dec();
            inner.metrics.lifetimes.session_ended(reason);
            if let Some(added) = &inner.added {
                added.removed();
            }
        }
    }
}

impl Drop for SessionMetrics {
    fn drop(&mut self) {
        self.over(Reason::SessionOver);
    }
}

/// The metrics of the link to one peer.
#[derive(Debug)]
pub struct PeerMetrics {
    counters: Option<PeerCounters>,
}

impl PeerMetrics {
    /// Counts an attempt to connect.
    pub fn attempted(&self) {
        if let Some(counters) = &self.counters {
            counters.attempts.inc();
        }
    }

    /// Counts a link that was established.
    pub fn connected(&self) {
        if let Some(counters) = &self.counters {
            counters.connected.inc();
        }
    }

    /// Counts a link that ended.
    pub fn disconnected(&self) {
        if let Some(counters) = &self.counters {
            counters.disconnected.inc();
        }
    }
}
