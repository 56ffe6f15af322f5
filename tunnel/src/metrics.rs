//! What the program itself believes: Prometheus counters. remotedialer's names and labels where it has them, so that its
//! dashboards go on working; ours begin with `watertight_`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use crate::mux::Ending;
use crate::target::Target;

/// How many values a label takes that comes from outside; what is beyond shares [`OTHER`].
const LABEL_VALUES_MAX: usize = 200;

/// The label value for everything beyond the cap.
const OTHER: &str = "~other";

/// The counters of one server or agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    add_connections: IntCounterVec,
    remove_connections: IntCounterVec,
    add_sessions: IntCounterVec,
    remove_sessions: IntCounterVec,
    sessions: IntGauge,
    streams: IntGauge,
    bytes: IntCounterVec,
    open_failures: IntCounterVec,
    tasks: IntGauge,
    addresses: Capped,
    clients: Capped,
}

impl Metrics {
    /// Creates the counters and registers them.
    ///
    /// # Errors
    ///
    /// When a name is taken twice, which a test rules out.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let connection = ["clientkey", "proto", "addr"];
        let session = ["clientkey", "peer"];
        let metrics = Self {
            add_connections: counters(
                "session_server_total_add_connections",
                "Streams opened to a target.",
                &connection,
            )?,
            remove_connections: counters(
                "session_server_total_remove_connections",
                "Streams to a target that are over.",
                &connection,
            )?,
            add_sessions: counters(
                "session_server_total_add_websocket_session",
                "Sessions begun.",
                &session,
            )?,
            remove_sessions: counters(
                "session_server_total_remove_websocket_session",
                "Sessions that are over.",
                &session,
            )?,
            sessions: gauge("watertight_sessions", "Sessions that are alive.")?,
            streams: gauge(
                "watertight_streams",
                "Streams that are open or being opened.",
            )?,
            bytes: counters(
                "watertight_stream_bytes_total",
                "Payload bytes of streams, to and from the peer.",
                &["direction"],
            )?,
            open_failures: counters(
                "watertight_open_failures_total",
                "Streams that were refused or could not be dialed, by reason.",
                &["reason"],
            )?,
            tasks: gauge("watertight_tasks", "Tasks of the program that are alive.")?,
            addresses: Capped::default(),
            clients: Capped::default(),
            registry: registry.clone(),
        };
        Ok(Arc::new(metrics))
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

    /// Counts a session of `client` that begins.
    #[must_use]
    pub fn session_began(self: &Arc<Self>, client: &str) -> SessionMetrics {
        let client = self.clients.cap(client);
        let labels = [client.as_str(), "false"];
        self.remove_sessions.with_label_values(&labels).inc_by(0);
        self.add_sessions.with_label_values(&labels).inc();
        self.sessions.inc();
        SessionMetrics {
            inner: Some(SessionInner {
                sent: self.bytes.with_label_values(&["to_peer"]),
                received: self.bytes.with_label_values(&["from_peer"]),
                metrics: Arc::clone(self),
                client,
            }),
        }
    }

    /// Counts a stream that was refused or could not be dialed.
    pub fn open_failed(&self, reason: &str) {
        self.open_failures.with_label_values(&[reason]).inc();
    }
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
    sent: IntCounter,
    received: IntCounter,
}

impl SessionMetrics {
    /// Counts a stream that is opened. The series of its end exists from here on, so that a difference can be drawn.
    #[must_use]
    pub fn stream_opened(&self, target: &Target) -> StreamMetrics {
        let Some(inner) = &self.inner else {
            return StreamMetrics::default();
        };
        let metrics = &inner.metrics;
        let address = metrics.addresses.cap(&target.authority());
        let labels = [inner.client.as_str(), target.proto(), address.as_str()];
        let remove = metrics.remove_connections.with_label_values(&labels);
        metrics.add_connections.with_label_values(&labels).inc();
        metrics.streams.inc();
        StreamMetrics {
            inner: Some((remove, metrics.streams.clone())),
        }
    }

    /// Counts payload bytes sent to the peer.
    pub fn sent(&self, bytes: usize) {
        if let Some(inner) = &self.inner {
            inner.sent.inc_by(bytes as u64);
        }
    }

    /// Counts payload bytes that came from the peer and went on.
    pub fn received(&self, bytes: usize) {
        if let Some(inner) = &self.inner {
            inner.received.inc_by(bytes as u64);
        }
    }
}

impl SessionMetrics {
    /// Counts the end of the session. Harmless when repeated.
    pub fn over(&mut self) {
        if let Some(inner) = self.inner.take() {
            let labels = [inner.client.as_str(), "false"];
            inner
                .metrics
                .remove_sessions
                .with_label_values(&labels)
                .inc();
            inner.metrics.sessions.dec();
        }
    }
}

impl Drop for SessionMetrics {
    fn drop(&mut self) {
        self.over();
    }
}

/// The counters of one stream.
#[derive(Debug, Default)]
pub struct StreamMetrics {
    inner: Option<(IntCounter, IntGauge)>,
}

impl StreamMetrics {
    /// Counts the end of the stream.
    pub fn ended(self, _ending: Ending) {
        if let Some((remove, streams)) = self.inner {
            remove.inc();
            streams.dec();
        }
    }
}

/// The values that a label has taken, up to the cap.
#[derive(Debug, Default)]
struct Capped {
    seen: Mutex<HashSet<String>>,
}

impl Capped {
    fn cap(&self, value: &str) -> String {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.contains(value) {
            if seen.len() >= LABEL_VALUES_MAX {
                return OTHER.to_owned();
            }
            seen.insert(value.to_owned());
        }
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_and_remove_exist_together_and_agree_at_rest() {
        let metrics = Metrics::new().unwrap();
        let session = metrics.session_began("web");
        let stream = session.stream_opened(&"tcp/127.0.0.1:6080".parse().unwrap());
        let line = |text: &str, end: u8| {
            assert!(
                text.contains(&format!(
                    "session_server_total_remove_connections{{addr=\"127.0.0.1:6080\",clientkey=\"web\",proto=\"tcp\"}} {end}"
                )),
                "{text}"
            );
        };
        line(&metrics.text().unwrap(), 0);
        stream.ended(Ending::Finished);
        line(&metrics.text().unwrap(), 1);
        drop(session);
        assert!(metrics.text().unwrap().contains("watertight_sessions 0"));
    }

    #[test]
    fn addresses_are_capped() {
        let metrics = Metrics::new().unwrap();
        let session = metrics.session_began("web");
        for port in 1..1000_u16 {
            let target = Target::tcp("127.0.0.1", Some(port)).unwrap();
            session.stream_opened(&target).ended(Ending::Finished);
        }
        let text = metrics.text().unwrap();
        let series = text
            .lines()
            .filter(|line| line.starts_with("session_server_total_add_connections{"));
        assert_eq!(series.count(), LABEL_VALUES_MAX + 1);
        assert!(text.contains("addr=\"~other\",clientkey=\"web\",proto=\"tcp\"} 799"));
    }
}
