//! `--listen`: the kernel's counts, for Prometheus.
//!
//! The HTTP task has no state: each scrape is passed to the audit's loop, which reads the kernel's
//! counters and the ledger's findings.
//!
//! A request must name an address, `localhost` or this machine as its host. The connections are
//! bounded in number and may not be silent for long.

mod findings;
mod histograms;
mod host;
mod http;
mod targets;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracer_abi::counter::Counter;
use tracer_core::ledger::Findings;
use tracer_core::verdict::{Kind, Level};

use crate::audit::Audit;
use crate::metrics::histograms::Histograms;
use crate::metrics::http::Limits;

/// How many scrapes may wait for the audit's loop.
const QUEUED_SCRAPES_MAX: usize = 8;

const LIMITS: Limits = Limits {
    connections_max: 32,
    silence: Duration::from_secs(30),
};

/// A request that waits for its answer.
#[derive(Debug)]
pub enum Scrape {
    /// `/metrics`.
    Metrics(oneshot::Sender<String>),
    /// `/readyz`: why the audit is blind, if it is.
    Ready(oneshot::Sender<Option<String>>),
}

impl Scrape {
    /// Responds with the audit's current state.
    pub fn respond(self, audit: &Audit) {
        // Whoever asked may be gone.
        match self {
            Self::Metrics(to) => {
                if let Ok(text) = text(audit) {
                    let _ = to.send(text);
                }
            }
            Self::Ready(to) => {
                let _ = to.send(audit.blind_reason());
            }
        }
    }
}

/// The HTTP listener; dropping it ends it.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    scrapes: mpsc::Receiver<Scrape>,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// Starts to listen.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on.
    pub async fn listen(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (--listen)"))?;
        let address = listener.local_addr()?;
        let (sender, scrapes) = mpsc::channel(QUEUED_SCRAPES_MAX);
        let router = Router::new()
            .route("/metrics", routing::get(scrape))
            .route("/readyz", routing::get(ready))
            .with_state(sender);
        let task = tokio::spawn(http::serve(listener, router, LIMITS));
        Ok(Self {
            address,
            scrapes,
            task,
        })
    }

    /// Returns the address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the next scrape.
    pub async fn next_scrape(&mut self) -> Option<Scrape> {
        self.scrapes.recv().await
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const BUSY: (StatusCode, &str) = (
    StatusCode::SERVICE_UNAVAILABLE,
    "the audit is busy or over\n",
);

async fn scrape(State(scrapes): State<mpsc::Sender<Scrape>>) -> Response {
    let (sender, response) = oneshot::channel();
    if scrapes.try_send(Scrape::Metrics(sender)).is_err() {
        return BUSY.into_response();
    }
    match response.await {
        Ok(text) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
            (kind, text).into_response()
        }
        Err(_) => BUSY.into_response(),
    }
}

async fn ready(State(scrapes): State<mpsc::Sender<Scrape>>) -> Response {
    let (sender, response) = oneshot::channel();
    if scrapes.try_send(Scrape::Ready(sender)).is_err() {
        return BUSY.into_response();
    }
    match response.await {
        Ok(None) => "ok\n".into_response(),
        Ok(Some(reason)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
        Err(_) => BUSY.into_response(),
    }
}

/// Name, help and counter of everything that the kernel counts.
const COUNTERS: [(&str, &str, Counter); 9] = [
    (
        "watertight_audit_sockets_created_total",
        "Sockets made by socket(2) in the audited cgroup.",
        Counter::Created,
    ),
    (
        "watertight_audit_sockets_accepted_total",
        "Accepted sockets, counted when a descriptor is first seen.",
        Counter::Accepted,
    ),
    (
        "watertight_audit_sockets_released_total",
        "Sockets whose last descriptor is gone.",
        Counter::Released,
    ),
    (
        "watertight_audit_sockets_connected_total",
        "Connections dialed and established.",
        Counter::Connected,
    ),
    (
        "watertight_audit_sockets_released_late_total",
        "Releases and reuses of sockets that had broken a rule for longer than grace.",
        Counter::Late,
    ),
    (
        "watertight_audit_requests_ended_total",
        "Owners that ended.",
        Counter::Ended,
    ),
    (
        "watertight_audit_annotations_refused_total",
        "Malformed annotations that were refused.",
        Counter::Refused,
    ),
    (
        "watertight_audit_records_lost_total",
        "Records lost because the ring was full.",
        Counter::RingFailures,
    ),
    (
        "watertight_audit_violations_lost_total",
        "Records of violations lost because their ring was full.",
        Counter::ViolationFailures,
    ),
];

/// How many findings of each kind there ever were, which a guard counts.
fn register_ever(registry: &Registry, findings: &Findings) -> Result<()> {
    let family = IntCounterVec::new(
        Opts::new(
            "watertight_audit_findings_total",
            "Findings that there ever were, by kind. Only of a guard, which forgets those that are \
             resolved.",
        ),
        &["kind"],
    )?;
    for kind in Kind::ALL {
        if let Some(count) = findings.ever(kind) {
            family.with_label_values(&[kind.name()]).inc_by(count);
        }
    }
    registry.register(Box::new(family))?;
    Ok(())
}

fn text(audit: &Audit) -> Result<String> {
    let counters = audit.counts().counters()?;
    let registry = Registry::new();
    let count = |name: &str, help: &str, value: u64| -> Result<()> {
        let metric = IntCounter::with_opts(Opts::new(name, help))?;
        metric.inc_by(value);
        registry.register(Box::new(metric))?;
        Ok(())
    };
    for (name, help, counter) in COUNTERS {
        count(name, help, counters.of(counter))?;
    }
    count(
        "watertight_audit_records_total",
        "Records read from the rings.",
        audit.records(),
    )?;
    let gauge = |name: &str, help: &str, value: i64| -> Result<()> {
        let metric = IntGauge::with_opts(Opts::new(name, help))?;
        metric.set(value);
        registry.register(Box::new(metric))?;
        Ok(())
    };
    gauge(
        "watertight_audit_sockets",
        "Sockets that are open now, by the kernel's counters.",
        i64::try_from(counters.open()).unwrap_or(i64::MAX),
    )?;
    registry.register(Box::new(Histograms::read(audit)?))?;
    let denied = audit.ledger().findings().count(Level::Deny);
    gauge(
        "watertight_audit_leaked_sockets",
        "Sockets with a denied finding, so far; of a guard, now.",
        i64::try_from(denied).unwrap_or(i64::MAX),
    )?;
    register_ever(&registry, audit.ledger().findings())?;
    registry.register(Box::new(findings::open_by_cause(
        audit.ledger().findings(),
    )?))?;
    targets::register(&registry, audit.ledger())?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(String::from_utf8(text)?)
}
