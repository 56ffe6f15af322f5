//! The private side: connects to the server, and dials the targets that its policy allows.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tunnel_proto::policy::Policy;
use tunnel_proto::wire::handshake::LINKS_MAX;

mod config;
mod dial;
mod inspect;
mod serve;

pub use crate::agent::config::{Config, Invited};
use crate::agent::serve::{TEARDOWN, stay_connected};
use crate::io::clock::Clock;
use crate::io::random;
use crate::io::resolver::Resolver;
use crate::io::scope::Scope;
use crate::io::token::Token;
use crate::metrics::Metrics;
use crate::relay::splice;
use crate::session::Session;
use crate::uplink::LinkHeaders;
use crate::uplink::keyring::Keyring;

/// A running agent. Dropping it aborts its tasks and closes their sockets. [`Agent::drain`] shuts
/// it down gracefully.
#[derive(Debug)]
pub struct Agent {
    scope: Scope,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    clock: Clock,
    keyring: Keyring,
    policy: RwLock<Policy>,
    /// Looks up the names of targets. The server's own name is not among its lookups.
    resolver: Resolver,
    metrics: Option<Arc<Metrics>>,
    /// Distinguishes its links from those of another agent of the same name.
    instance: u64,
    /// Cancelled when the agent drains or ends: no more links are made.
    over: CancellationToken,
    /// The sessions, by the slot of their link.
    sessions: watch::Sender<BTreeMap<u8, Session>>,
}

impl Agent {
    /// Starts an agent. It connects, and reconnects when a link ends. One whose configuration
    /// [`Config::check`] refuses logs why and connects to nothing.
    #[must_use]
    pub fn start(config: Config, metrics: Option<Arc<Metrics>>) -> Self {
        let scope = Scope::new();
        let links = match config.check() {
            Ok(()) => config.links.clamp(1, LINKS_MAX),
            Err(error) => {
                tracing::error!(%error, "the agent connects to nothing: its configuration is wrong");
                0
            }
        };
        let token = config.token.clone();
        let keyring = match &config.invited {
            Some(Invited { keep, kept }) => Keyring::invited(token, kept.clone(), keep.clone()),
            None => Keyring::new(token),
        };
        keyring.set_headers(config.link_headers.clone());
        let shared = Arc::new(Shared {
            policy: RwLock::new(config.policy.clone()),
            resolver: Resolver::new(config.resolver.clone()),
            config,
            keyring,
            clock: Clock::start(),
            metrics,
            instance: random::rand(),
            over: scope.cancelled().child_token(),
            sessions: watch::Sender::default(),
        });
        for slot in 0..links {
            scope.spawn(stay_connected(Arc::clone(&shared), slot, scope.handle()));
        }
        Self { scope, shared }
    }

    /// Returns the metrics, if it has any.
    #[must_use]
    pub fn counters(&self) -> Option<&Metrics> {
        self.shared.metrics.as_deref()
    }

    /// Replaces the policy for new streams. Open streams go on.
    pub fn set_policy(&self, policy: Policy) {
        let current = self.shared.policy.write();
        *current.unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Replaces the token for new links.
    pub fn set_token(&self, token: Token) {
        self.shared.keyring.replace(token);
    }

    /// Replaces the further headers of the handshake for new links.
    pub fn set_link_headers(&self, headers: LinkHeaders) {
        self.shared.keyring.set_headers(headers);
    }

    /// Waits until at least one link is up.
    pub async fn connected(&self) {
        let mut sessions = self.shared.sessions.subscribe();
        // The sender lives as long as `self`.
        let _ = sessions.wait_for(|sessions| !sessions.is_empty()).await;
    }

    /// Waits until no link is up.
    pub async fn disconnected(&self) {
        let mut sessions = self.shared.sessions.subscribe();
        // The sender lives as long as `self`.
        let _ = sessions.wait_for(BTreeMap::is_empty).await;
    }

    /// Returns the number of links that are up.
    #[must_use]
    pub fn links(&self) -> usize {
        self.shared.sessions.borrow().len()
    }

    /// Waits until the agent serves no stream.
    pub async fn idle(&self) {
        for session in self.shared.sessions() {
            session.idle().await;
        }
    }

    /// Stops taking streams, waits up to `deadline` for the open ones, resets the rest and ends
    /// every link.
    pub async fn drain(self, deadline: Duration) {
        self.shared.over.cancel();
        let sessions = self.shared.sessions();
        for session in &sessions {
            session.drain();
        }
        let idle = async {
            self.idle().await;
            if !sessions.iter().all(Session::acknowledges) {
                tokio::time::sleep(splice::FLUSH_GRACE).await;
            }
        };
        let in_time = tokio::time::timeout(deadline, idle).await.is_ok();
        let streams: usize = sessions.iter().map(Session::streams).sum();
        if !in_time && streams > 0 {
            tracing::warn!(
                streams,
                "streams are still open at the drain deadline; resetting them"
            );
        }
        self.scope.end(TEARDOWN).await;
    }
}

impl Shared {
    fn policy(&self) -> Policy {
        let policy = self.policy.read();
        policy.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn sessions(&self) -> Vec<Session> {
        self.sessions.borrow().values().cloned().collect()
    }
}
