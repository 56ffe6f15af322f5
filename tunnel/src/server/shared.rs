//! What every part of a server can reach.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::io::clock::Clock;
use crate::io::tls;
use crate::metrics::Metrics;
use crate::server::agents::registry::Registry;
use crate::server::auth::admission::Admission;
use crate::server::config::Config;
use crate::server::limits::{Quota, Quotas};

/// What all tasks of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) admission: Admission,
    pub(crate) registry: Registry,
    pub(crate) quotas: Quotas,
    pub(crate) metrics: Arc<Metrics>,
    /// What new connections of the front shake hands with.
    pub(crate) tls: Option<watch::Sender<tls::Server>>,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) draining: CancellationToken,
}

impl Shared {
    /// Waits until one more connection may come.
    pub(crate) async fn connection(&self) -> Option<OwnedSemaphorePermit> {
        let connections = Arc::clone(&self.connections);
        if connections.available_permits() == 0 {
            self.metrics.limit_rejected("connections");
        }
        connections.acquire_owned().await.ok()
    }

    /// Returns the quota that a session of an agent shares with its other sessions.
    pub(crate) fn quota(&self, agent: &str) -> Arc<Quota> {
        self.quotas.quota(agent, self.clock, || {
            let own = self.admission.access().limits(agent);
            own.unwrap_or(self.config.limits)
        })
    }

    /// Whether one more stream of an agent may be opened now.
    pub(crate) fn takes_open(&self, agent: &str) -> bool {
        self.quotas.takes_open(agent, self.clock.now())
    }

    /// Counts the head of a request that was too long, or a first one that did not come in time: a visitor that was served before
    /// was merely kept.
    pub(crate) fn count_head(&self, error: &hyper::Error, asked_once: bool) {
        if error.is_parse_too_large() || error.is_timeout() && !asked_once {
            self.metrics.limit_rejected("header");
        }
    }
}

/// How long tasks may take to let go after everything they wait for has ended.
pub(crate) const TEARDOWN: Duration = Duration::from_secs(2);
