//! The state that all parts of a server share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tunnel_proto::replicas::Terms;
use tunnel_proto::wire::handshake::Party;

use crate::io::clock::Clock;
use crate::io::tls;
use crate::login::Logins;
use crate::metrics::Metrics;
use crate::server::agents::registry::{NotTaken, Registry};
use crate::server::auth::access::Credential;
use crate::server::auth::admission::Admission;
use crate::server::budget::{Budget, Handshakes};
use crate::server::config::{Config, HttpPort};
use crate::server::limits::{Quota, Quotas};
use crate::uplink::keyring::Keyring;

/// What all tasks of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) admission: Admission,
    /// The attempts to log in at all ports.
    pub(crate) logins: Arc<Logins>,
    /// Holds the token that all peers share, if there are peers.
    pub(crate) peer_keyring: Option<Arc<Keyring>>,
    pub(crate) registry: Registry,
    pub(crate) quotas: Quotas,
    pub(crate) metrics: Arc<Metrics>,
    /// The TLS configuration of new connections to the front.
    pub(crate) tls: Option<watch::Sender<tls::Server>>,
    /// The HTTP port that has the front's socket, if there is one.
    pub(crate) front_http: watch::Sender<Option<Arc<HttpPort>>>,
    /// The connections to the front that are not let in yet.
    pub(crate) handshakes: Arc<Handshakes>,
    /// The visitors of the front.
    pub(crate) front_visitors: Budget,
    pub(crate) draining: CancellationToken,
}

impl Shared {
    /// Whether a session that authenticated with `credential` may go on.
    pub(crate) fn still_admits(&self, party: Party, name: &str, credential: Credential) -> bool {
        match party {
            Party::Agent => self.admission.still_admits(name, credential),
            Party::Peer => self
                .peer_keyring
                .as_ref()
                .is_some_and(|keyring| Credential::of(&keyring.token()) == credential),
            // This server dialed it; the other end decides.
            Party::Server => true,
        }
    }

    /// Returns how a newcomer is treated that uses an agent's name.
    pub(crate) fn terms(&self, agent: &str) -> Terms {
        Terms {
            replicas: self.admission.access().replicas(agent),
            instances_max: self.config.replicas_max,
        }
    }

    /// Counts a session that was not taken.
    pub(crate) fn count_not_taken(&self, not_taken: NotTaken) {
        match not_taken.limit() {
            Some(limit) => self.metrics.limit_rejected(limit),
            None => self.metrics.agent_refused("409"),
        }
    }

    /// Returns the quota that all sessions of an agent share.
    pub(crate) fn quota(&self, agent: &str) -> Arc<Quota> {
        self.quotas.quota(agent, self.clock, || {
            let own = self.admission.access().limits(agent);
            own.unwrap_or(self.config.limits)
        })
    }

    /// Whether the agent's limit allows one more stream now.
    pub(crate) fn takes_open(&self, agent: &str) -> bool {
        self.quotas.takes_open(agent, self.clock.now())
    }

    /// Counts a request head that is too long, or that is late.
    pub(crate) fn count_head(&self, error: &hyper::Error, is_late: bool) {
        if error.is_parse_too_large() || is_late {
            self.metrics.limit_rejected("header");
        }
    }
}

/// Waits for `future`, at most for `limit`, if there is one. Returns `None` when the time is up.
pub(crate) async fn within<T>(
    limit: Option<Duration>,
    future: impl Future<Output = T>,
) -> Option<T> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

/// How long tasks may take to end after they were cancelled.
pub(crate) const TEARDOWN: Duration = Duration::from_secs(2);
