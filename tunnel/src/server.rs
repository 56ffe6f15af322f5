//! The public side: takes agents' links and visitors' connections, and joins them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) mod agents;
pub mod auth;
mod budget;
pub mod config;
mod dialer;
mod front;
mod ingress;
mod inspect;
pub mod limits;
mod login;
mod open;
pub mod peer;
mod ports;
mod shared;
mod visitor;

pub use tunnel_proto::listen::Listen;
use tunnel_proto::mux::{ConfigError, Reason};

use crate::admin::{Admin, AdminError, Inspector};
use crate::io::clock::Clock;
use crate::io::scope::Scope;
use crate::io::socket::Listener;
use crate::io::tls;
use crate::io::token::Token;
use crate::login::Logins;
use crate::metrics::Metrics;
use crate::relay::splice;
use crate::server::agents::registry::Registry;
use crate::server::auth::access::Access;
use crate::server::auth::admission::Admission;
pub use crate::server::auth::admission::{INVITATIONS_MAX, InviteError};
use crate::server::auth::peers::Peers;
use crate::server::budget::{Budget, Handshakes};
pub use crate::server::config::port::{Port, PortsError};
pub use crate::server::config::{Config, Forward};
pub use crate::server::dialer::{
    ConnectError, Connecting, Connector, DialError, Dialer, POOL_IDLE_MAX, POOL_IDLE_TIMEOUT,
};
pub use crate::server::limits::Limits;
use crate::server::limits::Quotas;
use crate::server::ports::Ports;
use crate::server::shared::{Shared, TEARDOWN};
use crate::session::Session;
use crate::uplink::keyring::Keyring;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on; the error names it.
    #[error(transparent)]
    Listen(#[from] io::Error),
    /// The public ports cannot be served.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// The admin port cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A bound of the sessions is zero.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The counters cannot be registered.
    #[error("cannot register the counters: {0}")]
    Counters(#[from] prometheus::Error),
}

/// Why ports and access cannot be replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The ports cannot be served.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// The roster cannot be read.
    #[error(transparent)]
    Roster(#[from] io::Error),
}

/// A running server. Dropping it aborts its tasks and closes their sockets. [`Server::drain`] shuts
/// it down gracefully.
#[derive(Debug)]
pub struct Server {
    listening: Scope,
    visitors: Scope,
    links: Scope,
    /// The admin port answers until the end.
    admin_tasks: Scope,
    shared: Arc<Shared>,
    front: SocketAddr,
    ports: Ports,
    admin: Option<SocketAddr>,
}

impl Server {
    /// Listens on every configured address and starts to serve.
    ///
    /// # Errors
    ///
    /// [`StartError`]. Nothing is left running then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.mux.check()?;
        config.remotedialer_mux.check()?;
        let metrics = Metrics::new(config.compat_metrics)?;
        let admission = Admission::new(config.access.clone(), config.roster.as_deref())?;
        let front = Listener::listen(config.listen, "front").await?;
        front.set_options(config.splice.tcp);
        let wanted = config.all_ports();
        let admin = config.admin.clone();
        let peers = config.peers.as_deref();
        let servers = peers.map(Peers::names).unwrap_or_default();
        let clock = Clock::start();
        let shared = Arc::new(Shared {
            clock,
            admission,
            logins: Arc::new(Logins::new(clock, Arc::clone(&metrics))),
            peer_keyring: peers.map(|peers| Arc::new(Keyring::new(peers.token.clone()))),
            registry: Registry::new(config.sessions_max, servers, clock, Arc::clone(&metrics)),
            quotas: Quotas::default(),
            metrics: Arc::clone(&metrics),
            tls: config.tls.clone().map(watch::Sender::new),
            front_http: watch::Sender::new(None),
            handshakes: Arc::new(Handshakes::new(config.handshakes_max)),
            front_visitors: Budget::new(config.connections_max),
            draining: CancellationToken::new(),
            config,
        });
        let visitors = Scope::new();
        let mut server = Self {
            listening: Scope::new(),
            ports: Ports::new(Arc::clone(&shared), visitors.handle(), front.address()),
            visitors,
            links: Scope::new(),
            front: front.address(),
            admin: None,
            admin_tasks: Scope::new(),
            shared,
        };
        if let Some(config) = admin {
            let inspector = Inspector::new(Arc::<Shared>::clone(&server.shared));
            let logins = Arc::clone(&server.shared.logins);
            let admin = Admin::new(metrics).logins(logins).inspect(inspector);
            let port = admin.listen(config).await?;
            server.admin = Some(port.address());
            let tasks = &server.admin_tasks;
            tasks.spawn_interruptible(port.serve(tasks.handle()));
        }
        server.ports.set(wanted).await?;
        let (listening, shared) = (&server.listening, Arc::clone(&server.shared));
        let (visitors, links) = (server.visitors.handle(), server.links.handle());
        listening.spawn_interruptible(front::serve(shared, front, visitors, links));
        server.dial_peers();
        Ok(server)
    }

    /// Spawns the tasks that keep a link to each peer.
    fn dial_peers(&self) {
        let shared = &self.shared;
        let Some((peers, keyring)) = shared
            .config
            .peers
            .as_ref()
            .zip(shared.peer_keyring.as_ref())
        else {
            return;
        };
        for peer in &peers.table {
            self.links.spawn(peer::stay_connected(
                Arc::clone(shared),
                Arc::clone(peers),
                Arc::clone(keyring),
                peer.clone(),
                self.links.handle(),
            ));
        }
    }

    /// Returns the address of the front, with its real port.
    #[must_use]
    pub const fn front(&self) -> SocketAddr {
        self.front
    }

    /// Returns the addresses of the forwards in the order of the configuration. A forward on a Unix
    /// socket has no address and is left out.
    #[must_use]
    pub fn forwards(&self) -> Vec<SocketAddr> {
        let ports = self.ports.list().into_iter();
        ports
            .filter(|(port, _)| matches!(**port, Port::Forward(_)))
            .filter_map(|(_, address)| address.inet())
            .collect()
    }

    /// Returns all public ports besides the front in the order of the configuration, each with its
    /// real address.
    #[must_use]
    pub fn ports(&self) -> Vec<(Arc<Port>, Listen)> {
        self.ports.list()
    }

    /// Replaces the public ports besides the front. A port that stays keeps its socket, even if its
    /// destination has changed. A port that is removed stops listening: its streams go on, its UDP
    /// flows end.
    ///
    /// # Errors
    ///
    /// [`PortsError`] names the port and what is wrong with it. Nothing has changed then.
    pub async fn set_ports(&self, ports: Vec<Port>) -> Result<(), PortsError> {
        self.ports.set(ports).await
    }

    /// Replaces the ports and the access table together, as [`Self::set_ports`] and
    /// [`Self::set_access`] do.
    ///
    /// # Errors
    ///
    /// [`ReplaceError`]. Nothing has changed then.
    pub async fn replace(&self, ports: Vec<Port>, access: Access) -> Result<(), ReplaceError> {
        let shared = &self.shared;
        let prepared = Admission::prepare(access, shared.config.roster.as_deref())?;
        self.ports.set(ports).await?;
        shared.admission.commit(prepared);
        self.revoke();
        Ok(())
    }

    /// Returns the address of the admin port, if there is one.
    #[must_use]
    pub const fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Replaces the access table and reads the roster again. The sessions of agents whose token is
    /// no longer valid end at once. Open streams of other agents are not touched. It may block on
    /// the disk.
    ///
    /// # Errors
    ///
    /// The roster cannot be read. Nothing has changed then.
    pub fn set_access(&self, access: Access) -> io::Result<()> {
        let shared = &self.shared;
        let prepared = Admission::prepare(access, shared.config.roster.as_deref())?;
        shared.admission.commit(prepared);
        self.revoke();
        Ok(())
    }

    /// Replaces the token that all peers share. The sessions of peers that authenticated with
    /// another one end at once. The links that this server dialed go on, and its next handshakes
    /// use the new token. Without peers nothing changes.
    pub fn set_peer_token(&self, token: Token) {
        if let Some(keyring) = &self.shared.peer_keyring {
            keyring.replace(token);
            self.revoke();
        }
    }

    /// Ends the sessions whose token is no longer valid.
    fn revoke(&self) {
        let shared = &self.shared;
        shared
            .registry
            .revoke(|party, name, credential| shared.still_admits(party, name, credential));
    }

    /// Makes a one-time token that is valid for `lifetime`. The agent called `name` can join with
    /// it, or without a name the first agent whose name is free. The agent gets a token of its own
    /// in exchange.
    ///
    /// # Errors
    ///
    /// [`InviteError`].
    pub fn invite(&self, name: Option<&str>, lifetime: Duration) -> Result<Token, InviteError> {
        let now = self.shared.clock.now();
        self.shared.admission.invite(name, now, lifetime)
    }

    /// Whether the front speaks TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.shared.tls.is_some()
    }

    /// Replaces the certificate and the trusted client authorities for new connections. Existing
    /// connections go on. Returns `false` if the server was started without TLS, and then changes
    /// nothing.
    pub fn replace_tls(&self, tls: tls::Server) -> bool {
        let Some(current) = &self.shared.tls else {
            return false;
        };
        current.send_replace(tls);
        true
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Returns a dialer for the agent of this name, which need not be connected.
    #[must_use]
    pub fn dialer(&self, agent: &str) -> Dialer {
        Dialer::new(Arc::clone(&self.shared), agent)
    }

    /// Returns the names of the agents that are connected to this server, sorted.
    #[must_use]
    pub fn agents(&self) -> Vec<String> {
        self.shared.registry.names()
    }

    /// Whether an agent of this name is connected to this server or to a connected peer.
    #[must_use]
    pub fn has_agent(&self, name: &str) -> bool {
        self.shared.registry.reaches(name)
    }

    /// Returns the number of tasks that serve visitors and agents. It is zero when there are none.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.visitors.tasks() + self.links.tasks() + self.shared.registry.tasks()
    }

    /// Stops taking connections and streams, waits up to `deadline` for the open ones, resets the
    /// rest and ends every link.
    pub async fn drain(self, deadline: Duration) {
        self.listening.end(TEARDOWN).await;
        self.ports.end().await;
        self.shared.draining.cancel();
        self.shared.registry.withdraw();
        let sessions = self.shared.registry.sessions();
        for session in &sessions {
            session.drain();
        }
        let idle = async {
            for session in &sessions {
                session.idle().await;
            }
            if !sessions.iter().all(Session::acknowledges) {
                tokio::time::sleep(splice::FLUSH_GRACE).await;
            }
            self.visitors.join().await;
        };
        let in_time = tokio::time::timeout(deadline, idle).await.is_ok();
        let streams: usize = sessions.iter().map(Session::streams).sum();
        if !in_time && streams > 0 {
            tracing::warn!(
                streams,
                "streams are still open at the drain deadline; resetting them"
            );
        }
        for session in self.shared.registry.sessions() {
            session.end(Reason::SessionOver);
        }
        self.links.end(TEARDOWN).await;
        self.visitors.end(TEARDOWN).await;
        self.admin_tasks.end(TEARDOWN).await;
    }
}
