//! What the program itself believes: Prometheus counters. Ours begin with `watertight_`; those of remotedialer are there for who
//! asks for them, so that its dashboards go on working.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::{Counter, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

mod labels;
mod lifetimes;
mod remotedialer;

#[cfg(test)]
mod rules;

use tunnel_proto::mux::{By, Ending, Reason};
use tunnel_proto::target::Target;
use tunnel_proto::wire::handshake::Party;

use crate::io::tls;
use crate::metrics::labels::{CONNECT_FAILURES, LIMITS, NO_ROUTE, REFUSALS};
pub use crate::metrics::labels::{Dropped, Timeout};
use crate::metrics::lifetimes::Lifetimes;
use crate::metrics::remotedialer::{Added, ClientBytes, PeerCounters};

/// Whose names and labels the counters have besides our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compat {
    /// Those of rancher/remotedialer.
    Remotedialer,
}

/// The counters of one server or agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sessions: IntGauge,
    streams: IntGauge,
    lifetimes: Lifetimes,
    sent: IntCounter,
    received: IntCounter,
    open_failures: IntCounterVec,
    connect_failures: IntCounterVec,
    datagrams_dropped: IntCounterVec,
    limit_rejections: IntCounterVec,
    tls_handshake_failures: IntCounterVec,
    agents_refused: IntCounterVec,
    stream_timeouts: IntCounterVec,
    throttled: Counter,
    remotedialer: Option<remotedialer::Counters>,
    tasks: IntGauge,
}

impl Metrics {
    /// Creates the counters and registers them.
    ///
    /// # Errors
    ///
    /// When a name is taken twice, which a test rules out.
    pub fn new(compat: Option<Compat>) -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counters =
            |name: &str, help: &str, label: &str| counters(&registry, name, help, &[label]);
        let bytes = counters(
            "watertight_stream_bytes_total",
            "Payload bytes of streams, to and from the peer.",
            "direction",
        )?;
        let metrics = Self {
            sessions: gauge("watertight_sessions", "Sessions that are alive.")?,
            streams: gauge(
                "watertight_streams",
                "Streams that are open or being opened.",
            )?,
            lifetimes: Lifetimes::new(&registry)?,
            sent: bytes.with_label_values(&["to_peer"]),
            received: bytes.with_label_values(&["from_peer"]),
            open_failures: counters(
                "watertight_open_failures_total",
                "Streams that were refused or could not be dialed, by reason.",
                "reason",
            )?,
            connect_failures: counters(
                "watertight_connect_failures_total",
                "Attempts of an agent to reach its server that failed, by reason.",
                "reason",
            )?,
            datagrams_dropped: counters(
                "watertight_datagrams_dropped_total",
                "Datagrams of UDP flows that were dropped, by reason.",
                "reason",
            )?,
            limit_rejections: counters(
                "watertight_limit_rejections_total",
                "What a configured limit refused, by limit.",
                "limit",
            )?,
            agents_refused: counters(
                "watertight_agents_refused_total",
                "Requests for a link that were refused, by HTTP status: 401 is a token that is not good.",
                "status",
            )?,
            tls_handshake_failures: counters(
                "watertight_tls_handshake_failures_total",
                "Connections to the front whose TLS handshake failed, by reason.",
                "reason",
            )?,
            stream_timeouts: counters(
                "watertight_stream_timeouts_total",
                "Streams that were reset because of a timeout, by timeout.",
                "timeout",
            )?,
            throttled: {
                let throttled = Counter::new(
                    "watertight_throttled_seconds_total",
                    "Waits that were imposed on streams by their agent's bytes a second, summed over the streams.",
                )?;
                registry.register(Box::new(throttled.clone()))?;
                throttled
            },
            remotedialer: match compat {
                Some(Compat::Remotedialer) => Some(remotedialer::Counters::new(&registry)?),
                None => None,
            },
            tasks: gauge("watertight_tasks", "Tasks of the program that are alive.")?,
            registry: registry.clone(),
        };
        metrics.begin_at_zero();
        Ok(Arc::new(metrics))
    }

    /// A series that is there from the beginning can be subtracted and alerted on.
    fn begin_at_zero(&self) {
        let reasons = Reason::ALL.iter().map(|reason| reason.name());
        for reason in reasons.chain(NO_ROUTE) {
            self.open_failures.with_label_values(&[reason]);
        }
        for reason in CONNECT_FAILURES {
            self.connect_failures.with_label_values(&[reason]);
        }
        for limit in LIMITS {
            self.limit_rejections.with_label_values(&[limit]);
        }
        for status in REFUSALS {
            self.agents_refused.with_label_values(&[status]);
        }
        for timeout in Timeout::ALL {
            self.stream_timeouts.with_label_values(&[timeout.name()]);
        }
        for reason in tls::Failure::REASONS {
            self.tls_handshake_failures.with_label_values(&[reason]);
        }
        for dropped in Dropped::ALL {
            self.datagrams_dropped.with_label_values(&[dropped.name()]);
        }
    }

    /// Returns all counters in the Prometheus text format.
    ///
    /// # Errors
    ///
    /// When a metric cannot be written as text.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let tasks = runtime.metrics().num_alive_tasks();
            self.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Counts a session that begins. `client` is the name of the agent or the peer.
    #[must_use]
    pub fn session_began(self: &Arc<Self>, client: &str, party: Party) -> SessionMetrics {
        self.sessions.inc();
        self.lifetimes.sessions_opened.inc();
        let remotedialer = self.remotedialer.as_ref();
        let added = remotedialer.and_then(|counters| match party {
            Party::Agent => Some(counters.session(client, false)),
            Party::Peer => Some(counters.session(client, true)),
            // The original does not count it, only what it carries.
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

    /// Returns how many streams there are.
    #[must_use]
    pub fn streams(&self) -> i64 {
        self.streams.get()
    }

    /// Counts a stream that was refused or could not be dialed.
    pub fn open_failed(&self, reason: &str) {
        self.open_failures.with_label_values(&[reason]).inc();
    }

    /// Counts a datagram that was dropped.
    pub fn datagram_dropped(&self, reason: &str) {
        self.datagrams_dropped.with_label_values(&[reason]).inc();
    }

    /// Counts a stream that is reset because of a timeout.
    pub fn stream_timed_out(&self, timeout: Timeout) {
        let name = timeout.name();
        self.stream_timeouts.with_label_values(&[name]).inc();
    }

    /// Counts what a limit refused.
    pub fn limit_rejected(&self, limit: &str) {
        self.limit_rejections.with_label_values(&[limit]).inc();
    }

    /// Counts a request for a link that was refused.
    pub fn agent_refused(&self, status: &str) {
        self.agents_refused.with_label_values(&[status]).inc();
    }

    /// Counts a TLS handshake that failed.
    pub fn tls_handshake_failed(&self, reason: &str) {
        self.tls_handshake_failures
            .with_label_values(&[reason])
            .inc();
    }

    /// Counts an attempt to reach the server that failed.
    pub fn connect_failed(&self, reason: &str) {
        self.connect_failures.with_label_values(&[reason]).inc();
    }

    /// Returns the counters of the way to one peer. There must be a bound on the number of peers.
    #[must_use]
    pub fn peer(&self, id: &str) -> PeerMetrics {
        PeerMetrics {
            counters: self.remotedialer.as_ref().map(|counters| counters.peer(id)),
        }
    }
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

/// The counters of one session; counts its end when it goes.
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

/// What went to the link in messages of streams, their heads included, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transmitted {
    /// In messages with payload.
    pub data: usize,
    /// In messages that abandon or end a stream with an error.
    pub errors: usize,
}

impl SessionMetrics {
    /// Counts a stream to `target`. The series of its end exists from here on, so that a difference can be drawn.
    #[must_use]
    pub fn stream_began(&self, target: &Target) -> StreamMetrics {
        let Some(inner) = &self.inner else {
            return StreamMetrics::default();
        };
        inner.metrics.streams.inc();
        inner.metrics.lifetimes.streams_opened.inc();
        let remotedialer = inner.metrics.remotedialer.as_ref();
        StreamMetrics {
            metrics: Some(Arc::clone(&inner.metrics)),
            added: remotedialer.map(|counters| counters.connection(&inner.client, target)),
        }
    }

    /// Counts a stream that is reset because of a timeout.
    pub fn timed_out(&self, timeout: Timeout) {
        if let Some(inner) = &self.inner {
            inner.metrics.stream_timed_out(timeout);
        }
    }

    /// Counts the time for which a stream must wait for its agent's bytes a second.
    pub fn throttled(&self, wait: Duration) {
        if let Some(inner) = &self.inner {
            inner.metrics.throttled.inc_by(wait.as_secs_f64());
        }
    }

    /// Counts payload bytes of streams that go to the peer.
    pub fn sent(&self, bytes: usize) {
        if let Some(inner) = &self.inner {
            inner.metrics.sent.inc_by(bytes as u64);
        }
    }

    /// Counts payload bytes that came from the peer and went on.
    pub fn received(&self, bytes: usize) {
        if let Some(inner) = &self.inner {
            inner.metrics.received.inc_by(bytes as u64);
            if let Some(counters) = &inner.bytes {
                counters.received(bytes);
            }
        }
    }

    /// Counts messages that went to the link.
    pub fn transmitted(&self, transmitted: Transmitted) {
        if let Some(counters) = self.inner.as_ref().and_then(|inner| inner.bytes.as_ref()) {
            counters.transmitted(transmitted);
        }
    }

    /// Takes note of how long a ping took to be answered.
    pub fn pong(&self, after: Duration) {
        if let Some(inner) = &self.inner {
            inner.metrics.lifetimes.pong(after);
        }
    }

    /// Counts the end of the session. Harmless when repeated.
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

/// Counts the end of a stream, at the latest when it goes.
#[derive(Debug, Default)]
pub struct StreamMetrics {
    metrics: Option<Arc<Metrics>>,
    added: Option<Added>,
}

impl StreamMetrics {
    /// Takes note of how long the stream took to be accepted.
    pub fn accepted(&self, after: Duration) {
        if let Some(metrics) = &self.metrics {
            metrics.lifetimes.stream_accepted(after);
        }
    }

    /// Counts the end of the stream.
    pub fn ended(mut self, ending: Ending, age: Duration) {
        self.count_out(ending, Some(age));
    }

    fn count_out(&mut self, ending: Ending, age: Option<Duration>) {
        if let Some(metrics) = self.metrics.take() {
            metrics.streams.dec();
            metrics.lifetimes.stream_ended(ending, age);
        }
        if let Some(added) = self.added.take() {
            added.removed();
        }
    }
}

impl Drop for StreamMetrics {
    fn drop(&mut self) {
        self.count_out(Ending::Reset(Reason::SessionOver, By::Us), None);
    }
}

/// The counters of the way to one peer.
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

    /// Counts a link that is established.
    pub fn connected(&self) {
        if let Some(counters) = &self.counters {
            counters.connected.inc();
        }
    }

    /// Counts the end of such a link.
    pub fn disconnected(&self) {
        if let Some(counters) = &self.counters {
            counters.disconnected.inc();
        }
    }
}
