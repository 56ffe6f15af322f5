//! The public side: takes agents' links and visitors' connections, and joins them.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub mod access;
mod admission;
mod connect;
mod dialer;
mod exchange;
mod flows;
pub mod forward;
mod front;
pub mod handshake;
mod ingress;
pub mod limits;
mod links;
pub mod listen;
mod open;
pub mod peer;
pub mod port;
mod ports;
mod registry;
mod relay;
mod request;
pub mod roster;
mod socks5;
mod subject;
mod visitor;

pub use admission::{INVITATIONS_MAX, InviteError};
pub use dialer::{
    ConnectError, Connecting, Connector, DialError, Dialer, POOL_IDLE_MAX, POOL_IDLE_TIMEOUT,
};
pub use forward::Forward;
pub use limits::Limits;
pub use listen::Listen;
pub use port::{Port, PortsError};

use access::Access;
use admission::Admission;
use handshake::Remotedialer;
use limits::Quotas;
use peer::Peers;
use ports::Ports;
use registry::Registry;

use crate::admin::{self, Admin, AdminError};
use crate::clock::Clock;
use crate::flow;
use crate::link;
use crate::metrics::{Compat, Metrics};
use crate::mux::{self, Reason, legacy};
use crate::scope::Scope;
use crate::session::Session;
use crate::socket::Listener;
use crate::splice;
use crate::tls;
use crate::token::Token;

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where agents and HTTP visitors connect.
    pub listen: SocketAddr,
    /// TLS of that port; without it the port speaks plain HTTP.
    pub tls: Option<tls::Server>,
    /// How long a TLS handshake may take there.
    pub tls_handshake_timeout: Duration,
    /// Static forwards.
    pub forwards: Vec<Forward>,
    /// More public ports: SOCKS5 and HTTP CONNECT.
    pub ports: Vec<Port>,
    /// The admin port: counters, health, sessions.
    pub admin: Option<admin::Config>,
    /// Whose counters there are besides our own.
    pub compat_metrics: Option<Compat>,
    /// Which agents are let in, and what may be asked of them.
    pub access: Access,
    /// The file with the agents that joined by invitation; without it they are forgotten when the server ends.
    pub roster: Option<PathBuf>,
    /// Connections at once, of visitors, and of agents until their handshake is done; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// Links of agents at once.
    pub sessions_max: usize,
    /// How much may be asked of each agent.
    pub limits: Limits,
    /// How long the head of a request may take, and how long a kept-alive connection may be silent.
    pub header_timeout: Duration,
    /// How long a target may take to begin its response.
    pub response_timeout: Duration,
    /// How long a visitor of the HTTP front that finished its side may wait for the rest of the response without a byte.
    pub visitor_linger: Duration,
    /// Whether and how clients of remotedialer's dialect are taken.
    pub remotedialer: Option<Remotedialer>,
    /// The other servers, if there are any.
    pub peers: Option<Arc<Peers>>,
    /// Bounds of each session.
    pub mux: mux::Config,
    /// Bounds of each session in remotedialer's dialect.
    pub legacy: legacy::Config,
    /// Bounds of each link.
    pub link: link::Config,
    /// Bounds of each splice.
    pub splice: splice::Config,
    /// Bounds of the flows of each UDP forward.
    pub flow: flow::Config,
}

impl Config {
    /// Returns the defaults around what has none.
    #[must_use]
    pub fn new(listen: SocketAddr, access: impl Into<Access>) -> Self {
        Self {
            listen,
            tls: None,
            tls_handshake_timeout: Duration::from_secs(10),
            forwards: Vec::new(),
            ports: Vec::new(),
            admin: None,
            compat_metrics: None,
            access: access.into(),
            roster: None,
            connections_max: 16_384,
            sessions_max: 4096,
            limits: Limits::default(),
            header_timeout: Duration::from_secs(30),
            response_timeout: Duration::from_secs(60),
            visitor_linger: Duration::from_millis(500),
            remotedialer: None,
            peers: None,
            mux: mux::Config::default(),
            legacy: legacy::Config::default(),
            link: link::Config::default(),
            splice: splice::Config::default(),
            flow: flow::Config::default(),
        }
    }

    /// Returns the forwards and the other ports, in this order.
    #[must_use]
    pub fn all_ports(&self) -> Vec<Port> {
        let forwards = self.forwards.iter().cloned().map(Port::Forward);
        forwards.chain(self.ports.iter().cloned()).collect()
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on; the error names it.
    #[error(transparent)]
    Listen(#[from] io::Error),
    /// A public port cannot be there.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// There cannot be an admin port.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The counters cannot be registered.
    #[error("cannot register the counters: {0}")]
    Counters(#[from] prometheus::Error),
}

/// A running server. Dropping it drops its tasks and their sockets; [`Server::drain`] ends it in order.
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

/// What all tasks of a server share.
#[derive(Debug)]
struct Shared {
    config: Config,
    clock: Clock,
    admission: Admission,
    registry: Registry,
    quotas: Quotas,
    metrics: Arc<Metrics>,
    /// What new connections of the front shake hands with.
    tls: Option<watch::Sender<tls::Server>>,
    connections: Arc<Semaphore>,
    draining: CancellationToken,
}

impl Shared {
    /// Waits until one more connection may come.
    async fn connection(&self) -> Option<OwnedSemaphorePermit> {
        let connections = Arc::clone(&self.connections);
        if connections.available_permits() == 0 {
            self.metrics.limit_rejected("connections");
        }
        connections.acquire_owned().await.ok()
    }

    /// Counts the head of a request that was too long, or a first one that did not come in time: a visitor that was served before
    /// was merely kept.
    fn count_head(&self, error: &hyper::Error, asked_once: bool) {
        if error.is_parse_too_large() || error.is_timeout() && !asked_once {
            self.metrics.limit_rejected("header");
        }
    }
}

impl Server {
    /// Listens on every address of the configuration and begins to serve.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left running then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let metrics = Metrics::new(config.compat_metrics)?;
        let admission = Admission::new(config.access.clone(), config.roster.as_deref())?;
        let front = Listener::listen(config.listen, "front").await?;
        front.set_options(config.splice.tcp);
        let wanted = config.all_ports();
        let admin = config.admin.clone();
        let peers = config.peers.as_deref();
        let servers = peers.map(Peers::names).unwrap_or_default();
        let shared = Arc::new(Shared {
            clock: Clock::start(),
            admission,
            registry: Registry::new(config.sessions_max, servers),
            quotas: Quotas::default(),
            metrics: Arc::clone(&metrics),
            tls: config.tls.clone().map(watch::Sender::new),
            connections: Arc::new(Semaphore::new(config.connections_max)),
            draining: CancellationToken::new(),
            config,
        });
        let visitors = Scope::new();
        let mut server = Self {
            listening: Scope::new(),
            ports: Ports::new(Arc::clone(&shared), visitors.handle()),
            visitors,
            links: Scope::new(),
            front: front.address(),
            admin: None,
            admin_tasks: Scope::new(),
            shared,
        };
        if let Some(config) = admin {
            let subject = Arc::<Shared>::clone(&server.shared);
            let admin = Admin::new(metrics).subject(subject);
            let port = admin.listen(config).await?;
            server.admin = Some(port.address());
            let tasks = &server.admin_tasks;
            tasks.spawn_interruptible(port.serve(tasks.handle()));
        }
        server.ports.set(wanted).await?;
        let (listening, shared) = (&server.listening, || Arc::clone(&server.shared));
        let (visitors, links) = (server.visitors.handle(), server.links.handle());
        listening.spawn_interruptible(front::serve(shared(), front, visitors, links));
        if let Some(peers) = &server.shared.config.peers {
            for peer in &peers.table {
                let (peers, peer) = (Arc::clone(peers), peer.clone());
                let links = server.links.handle();
                server
                    .links
                    .spawn(peer::stay_connected(shared(), peers, peer, links));
            }
        }
        Ok(server)
    }

    /// Returns the address of the front, with its real port.
    #[must_use]
    pub const fn front(&self) -> SocketAddr {
        self.front
    }

    /// Returns the addresses of the forwards in the order of the configuration; one that listens at a path has none.
    #[must_use]
    pub fn forwards(&self) -> Vec<SocketAddr> {
        let ports = self.ports.list().into_iter();
        ports
            .filter(|(port, _)| matches!(**port, Port::Forward(_)))
            .filter_map(|(_, address)| address.inet())
            .collect()
    }

    /// Returns all public ports besides the front in the order of the configuration, each with its real address.
    #[must_use]
    pub fn ports(&self) -> Vec<(Arc<Port>, Listen)> {
        self.ports.list()
    }

    /// Makes `ports` the public ports besides the front. One that stays goes on without a gap, also if only what its visitors get
    /// has changed. One that is gone is not listened on any more; its streams go on, its UDP flows end.
    ///
    /// # Errors
    ///
    /// [`PortsError`] says what is wrong with which: nothing was changed.
    pub async fn set_ports(&self, ports: Vec<Port>) -> Result<(), PortsError> {
        self.ports.set(ports).await
    }

    /// Returns the address of the admin port, if there is one.
    #[must_use]
    pub const fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Replaces who is let in and what may be asked of whom, and reads the roster again. Sessions of agents whose token is not good any
    /// longer end at once; streams that are open are not touched otherwise. It may wait for the disk.
    ///
    /// # Errors
    ///
    /// When the roster cannot be read; then nothing has changed.
    pub fn set_access(&self, access: Access) -> io::Result<()> {
        let shared = &self.shared;
        shared
            .admission
            .replace(access, shared.config.roster.as_deref())?;
        shared
            .registry
            .revoke(|name, credential| shared.admission.still_admits(name, credential));
        Ok(())
    }

    /// Makes a one-time token by which an agent can join within `lifetime`: the one called `name`, or the first that comes under a
    /// name that is free. The agent gets a token of its own in return.
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

    /// Takes another certificate, and whom it trusts, for connections from now on; those that are there go on. Returns whether it
    /// did: a server that was started without TLS goes on without.
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

    /// Returns what dials through the agent of this name, connected or not.
    #[must_use]
    pub fn dialer(&self, agent: &str) -> Dialer {
        Dialer::new(Arc::clone(&self.shared), agent)
    }

    /// Returns the names of the agents that are connected here, in order.
    #[must_use]
    pub fn agents(&self) -> Vec<String> {
        self.shared.registry.names()
    }

    /// Whether an agent of this name is connected, here or at a peer that is.
    #[must_use]
    pub fn has_agent(&self, name: &str) -> bool {
        self.shared.registry.find(name).is_some()
    }

    /// Returns the number of tasks that serve visitors and agents, for those who watch that it comes back to zero.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.visitors.tasks() + self.links.tasks() + self.shared.registry.tasks()
    }

    /// Takes no connections and no streams any more, waits until `deadline` for those that are there, resets the rest and ends
    /// every link.
    pub async fn drain(self, deadline: Duration) {
        self.listening.end(TEARDOWN).await;
        self.ports.end().await;
        self.shared.draining.cancel();
        self.shared.registry.withdraw();
        let sessions = self.shared.registry.sessions();
        for session in &sessions {
            session.drain();
        }
        let quiet = async {
            for session in &sessions {
                session.quiet().await;
            }
            if !sessions.iter().all(Session::acknowledges) {
                tokio::time::sleep(splice::LAST_WORDS).await;
            }
            self.visitors.join().await;
        };
        let in_time = tokio::time::timeout(deadline, quiet).await.is_ok();
        let streams: usize = sessions.iter().map(Session::streams).sum();
        if !in_time && streams > 0 {
            tracing::warn!(
                streams,
                "streams are left at the drain deadline; they are reset"
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

/// How long tasks may take to let go after everything they wait for has ended.
const TEARDOWN: Duration = Duration::from_secs(2);
