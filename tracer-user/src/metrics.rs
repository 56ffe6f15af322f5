//! `--listen`: the kernel's own counts, for Prometheus.
//!
//! The HTTP task holds no state: it asks the audit's loop, which answers from the kernel's counters as they are then.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use prometheus::{Encoder, IntCounter, IntGauge, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracer_abi::counter::Counter;

use crate::audit::Audit;
use tracer_core::verdict::Level;

/// How many scrapes may wait for the audit's loop.
const WAITING: usize = 8;

/// A scrape that waits for its answer.
#[derive(Debug)]
pub struct Scrape(oneshot::Sender<String>);

impl Scrape {
    /// Answers with the audit's present state.
    pub fn answer(self, audit: &Audit) {
        if let Ok(text) = text(audit) {
            // Whoever asked may be gone.
            let _ = self.0.send(text);
        }
    }
}

/// The HTTP listener; dropping it ends it.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    asks: mpsc::Receiver<Scrape>,
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
        let (sender, asks) = mpsc::channel(WAITING);
        let router = Router::new()
            .route("/metrics", routing::get(scrape))
            .with_state(sender);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                log::warn!("the metrics listener ended: {error}");
            }
        });
        Ok(Self {
            address,
            asks,
            task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the next scrape.
    pub async fn next_scrape(&mut self) -> Option<Scrape> {
        self.asks.recv().await
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn scrape(State(asks): State<mpsc::Sender<Scrape>>) -> Response {
    let (sender, answer) = oneshot::channel();
    let busy = (
        StatusCode::SERVICE_UNAVAILABLE,
        "the audit is busy or over\n",
    );
    if asks.try_send(Scrape(sender)).is_err() {
        return busy.into_response();
    }
    match answer.await {
        Ok(text) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
            (kind, text).into_response()
        }
        Err(_) => busy.into_response(),
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
        "Connections that were dialed and established.",
        Counter::Connected,
    ),
    (
        "watertight_audit_sockets_released_late_total",
        "Times that a socket had broken a rule for longer than grace as it was released or began anew.",
        Counter::Late,
    ),
    (
        "watertight_audit_requests_ended_total",
        "Owners whose END was told.",
        Counter::Ended,
    ),
    (
        "watertight_audit_annotations_refused_total",
        "Annotations refused for their form.",
        Counter::Refused,
    ),
    (
        "watertight_audit_records_lost_total",
        "Records that found the ring full.",
        Counter::RingFailures,
    ),
    (
        "watertight_audit_violations_lost_total",
        "Records of violations that found their ring full.",
        Counter::ViolationFailures,
    ),
];

fn text(audit: &Audit) -> Result<String> {
    let counters = audit.counters()?;
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
        "Records of the kernel side that were taken off its rings.",
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
    let denied = audit.ledger().findings().count(Level::Deny);
    gauge(
        "watertight_audit_leaked_sockets",
        "Sockets with a finding that denies, so far.",
        i64::try_from(denied).unwrap_or(i64::MAX),
    )?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(String::from_utf8(text)?)
}
