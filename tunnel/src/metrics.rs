//! Prometheus metrics. Our names begin with `watertight_`. The metrics of remotedialer are
//! optional: with them, its dashboards go on working.

use std::sync::Arc;

use prometheus::{
    Counter, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

mod labels;
mod lifetimes;
mod logins;
mod remotedialer;
mod sessions;
mod streams;

#[cfg(test)]
mod rules;

use tunnel_proto::mux::Reason;

use crate::io::tls;
use crate::metrics::labels::{CONNECT_FAILURES, LIMITS, NO_ROUTE, REFUSALS};
pub use crate::metrics::labels::{Dropped, LoginPort, LoginRefusal, Timeout};
use crate::metrics::lifetimes::Lifetimes;
use crate::metrics::logins::Logins;
pub use crate::metrics::sessions::{PeerMetrics, SessionMetrics};
pub use crate::metrics::streams::StreamMetrics;

/// A program under whose metric names and labels the counters are exported as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compat {
    /// rancher/remotedialer.
    Remotedialer,
}

/// The metrics of one server or agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sessions: IntGauge,
    streams: IntGauge,
    lifetimes: Lifetimes,
    logins: Logins,
    sent: IntCounter,
    received: IntCounter,
    open_failures: IntCounterVec,
    connect_failures: IntCounterVec,
    datagrams_dropped: IntCounterVec,
    limit_rejections: IntCounterVec,
    tls_handshake_failures: IntCounterVec,
    agents_refused: IntCounterVec,
    agent_sessions: IntGaugeVec,
    agent_flaps: IntCounter,
    stream_timeouts: IntCounterVec,
    throttled: Counter,
    remotedialer: Option<remotedialer::Counters>,
    tasks: IntGauge,
}

impl Metrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    ///
    /// A name is registered twice, which a test rules out.
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
            logins: Logins::new(&registry)?,
            sent: bytes.with_label_values(&["to_peer"]),
            received: bytes.with_label_values(&["from_peer"]),
            open_failures: counters(
                "watertight_open_failures_total",
                "Streams that were refused or whose target could not be dialed, by reason.",
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
                "Requests, connections, streams and frames that a configured limit refused, by \
                 limit.",
                "limit",
            )?,
            agents_refused: counters(
                "watertight_agents_refused_total",
                "Requests for a link that were refused, by HTTP status. 401 means that the token \
                 is not valid.",
                "status",
            )?,
            agent_sessions: {
                let sessions = IntGaugeVec::new(
                    Opts::new(
                        "watertight_agent_sessions",
                        "Sessions of each agent that is connected, by its name.",
                    ),
                    &["agent"],
                )?;
                registry.register(Box::new(sessions.clone()))?;
                sessions
            },
            agent_flaps: {
                let flaps = IntCounter::new(
                    "watertight_agent_flaps_total",
                    "Sessions that ended soon after several others of the same agent had ended \
                     soon.",
                )?;
                registry.register(Box::new(flaps.clone()))?;
                flaps
            },
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
                    "Time that streams waited because of their agent's limit of bytes per second, \
                     summed over the streams.",
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

    /// Creates every series at zero, so that rates and alerts work from the start.
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

    /// Returns all metrics in the Prometheus text format.
    ///
    /// # Errors
    ///
    /// A metric cannot be written as text.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let tasks = runtime.metrics().num_alive_tasks();
            self.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Returns the number of streams.
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

    /// Counts a refusal by a limit.
    pub fn limit_rejected(&self, limit: &str) {
        self.limit_rejections.with_label_values(&[limit]).inc();
    }

    /// Counts a request for a link that was refused.
    pub fn agent_refused(&self, status: &str) {
        self.agents_refused.with_label_values(&[status]).inc();
    }

    /// Sets the number of an agent's sessions. The caller must bound the number of agents.
    pub(crate) fn set_agent_sessions(&self, agent: &str, sessions: usize) {
        if sessions == 0 {
            let _ = self.agent_sessions.remove_label_values(&[agent]);
        } else {
            let sessions = i64::try_from(sessions).unwrap_or(i64::MAX);
            self.agent_sessions
                .with_label_values(&[agent])
                .set(sessions);
        }
    }

    /// Counts a session that ended soon, as several others of its agent did.
    pub(crate) fn agent_flapped(&self) {
        self.agent_flaps.inc();
    }

    /// Counts a login that was refused.
    pub fn login_refused(&self, port: LoginPort, reason: LoginRefusal) {
        self.logins.refused(port, reason);
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

/// Bytes of streams that were sent over the link, message headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transmitted {
    /// In messages with payload.
    pub data: usize,
    /// In messages that reset a stream or end it with an error.
    pub errors: usize,
}
