//! The private side: dials the server, and dials for the server what its policy allows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::http::HeaderName;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

mod dial;
mod inspect;

use tunnel_proto::mux;
use tunnel_proto::mux::Reason;
use tunnel_proto::policy::Policy;
use tunnel_proto::target::Target;
use tunnel_proto::wire::frame::Side;
use tunnel_proto::wire::handshake::{LINKS_MAX, LinkId, Party};
use tunnel_proto::wire::{Dialect, handshake};

use crate::agent::dial::{Dialed, dial};
use crate::io::clock::Clock;
use crate::io::scope::Scope;
use crate::io::socket::{DatagramSocket, Owner, Role};
use crate::io::tls::Transport;
use crate::io::token::Token;
use crate::io::{random, scope, tls};
use crate::metrics::{Metrics, SessionMetrics, Timeout};
use crate::relay::splice::splice;
use crate::relay::{datagrams, splice};
use crate::session::link::{Link, LinkError};
use crate::session::{Core, Incoming, Session, Stream, link};
use crate::uplink::ServerUrl;
use crate::uplink::dial::{ConnectError, Uplink};
use crate::uplink::keyring::Keyring;
use crate::uplink::proxy::Proxy;
use crate::uplink::reconnect::{Upkeep, keep_up};

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server's `wss://HOST:PORT/connect`, or `ws://HOST:PORT/connect` without TLS.
    pub server: ServerUrl,
    /// Which servers are trusted, and who this agent is to them. Means nothing without TLS.
    pub tls: tls::Client,
    /// The name under which visitors ask for this agent.
    pub name: String,
    /// The proxy through which the server is reached. Targets are not.
    pub proxy: Option<Proxy>,
    /// What may be dialed.
    pub policy: Policy,
    /// The secret that the server knows.
    pub token: Token,
    /// Set when the secret is an invitation's: with the first handshake it is exchanged for one that is this agent's own, which is kept
    /// in the file, if one is named, for later runs.
    pub invited: Option<Invited>,
    /// How long resolving and dialing a target may take together.
    pub dial_timeout: Duration,
    /// How long connecting to the server and its handshake may take together.
    pub connect_timeout: Duration,
    /// Links to the server at once, 1 to [`LINKS_MAX`]; what lies outside counts as the nearer end. Streams are spread over
    /// them, and a link that dies costs its own only.
    pub links: u8,
    /// The first and the longest wait between attempts to connect.
    pub backoff: (Duration, Duration),
    /// How the server talks.
    pub dialect: Dialect,
    /// The request header that carries the secret instead of `Authorization: Bearer`.
    pub token_header: Option<HeaderName>,
    /// Bounds of the session.
    pub mux: mux::native::Config,
    /// Bounds of the session in remotedialer's dialect.
    pub remotedialer_mux: mux::remotedialer::Config,
    /// Bounds of the link.
    pub link: link::Config,
    /// Bounds of each splice.
    pub splice: splice::Config,
    /// Bounds of each UDP flow.
    pub datagrams: datagrams::Config,
}

impl Config {
    /// Returns the defaults around what has none.
    #[must_use]
    pub fn new(server: ServerUrl, name: String, policy: Policy, token: Token) -> Self {
        Self {
            server,
            tls: tls::Client::default(),
            name,
            proxy: None,
            policy,
            token,
            invited: None,
            dial_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            links: 1,
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            dialect: Dialect::Native,
            token_header: None,
            mux: mux::native::Config::default(),
            remotedialer_mux: mux::remotedialer::Config::default(),
            link: link::Config::default(),
            splice: splice::Config::default(),
            datagrams: datagrams::Config::default(),
        }
    }
}

/// What becomes of an invitation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invited {
    /// The file that the agent's own token is written to, readable by its owner only.
    pub keep: Option<PathBuf>,
    /// What an earlier run kept there. It is tried first, since an invitation is good once.
    pub kept: Option<Token>,
}

/// A running agent. Dropping it drops its tasks and their sockets; [`Agent::drain`] ends it in order.
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
    metrics: Option<Arc<Metrics>>,
    /// Tells its links from those of another agent of this name.
    instance: u64,
    /// Cancelled when no link is to be made any more: the agent drains or ends.
    over: CancellationToken,
    /// The sessions by the slots of their links.
    sessions: watch::Sender<BTreeMap<u8, Session>>,
}

impl Agent {
    /// Starts an agent, which connects and stays connected.
    #[must_use]
    pub fn start(config: Config, metrics: Option<Arc<Metrics>>) -> Self {
        let scope = Scope::new();
        let links = config.links.clamp(1, LINKS_MAX);
        let token = config.token.clone();
        let keyring = match &config.invited {
            Some(Invited { keep, kept }) => Keyring::invited(token, kept.clone(), keep.clone()),
            None => Keyring::new(token),
        };
        let shared = Arc::new(Shared {
            policy: RwLock::new(config.policy.clone()),
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

    /// Returns the counters, if it has any.
    #[must_use]
    pub fn counters(&self) -> Option<&Metrics> {
        self.shared.metrics.as_deref()
    }

    /// Replaces what may be dialed from now on. Streams that are open go on.
    pub fn set_policy(&self, policy: Policy) {
        let current = self.shared.policy.write();
        *current.unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Replaces the secret that the next links are made with.
    pub fn set_token(&self, token: Token) {
        self.shared.keyring.replace(token);
    }

    /// Waits until the agent is connected, by whatever link.
    pub async fn connected(&self) {
        let mut sessions = self.shared.sessions.subscribe();
        // The sender lives as long as `self`.
        let _ = sessions.wait_for(|sessions| !sessions.is_empty()).await;
    }

    /// Waits until the agent is not connected.
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
    pub async fn quiet(&self) {
        for session in self.shared.sessions() {
            session.quiet().await;
        }
    }

    /// Takes no new streams, waits until `deadline` for those that are open, resets the rest and ends every link.
    pub async fn drain(self, deadline: Duration) {
        self.shared.over.cancel();
        let sessions = self.shared.sessions();
        for session in &sessions {
            session.drain();
        }
        let quiet = async {
            self.quiet().await;
            if !sessions.iter().all(Session::acknowledges) {
                tokio::time::sleep(splice::FLUSH_GRACE).await;
            }
        };
        let in_time = tokio::time::timeout(deadline, quiet).await.is_ok();
        let streams: usize = sessions.iter().map(Session::streams).sum();
        if !in_time && streams > 0 {
            tracing::warn!(
                streams,
                "streams are left at the drain deadline; they are reset"
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

/// How long tasks may take to let go after everything they wait for has ended.
const TEARDOWN: Duration = Duration::from_secs(2);

/// Keeps one link up until the agent drains or ends.
async fn stay_connected(shared: Arc<Shared>, slot: u8, handle: scope::Handle) {
    let config = &shared.config;
    if slot > 0 {
        // An invitation is good for one link.
        tokio::select! {
            biased;
            () = shared.over.cancelled() => return,
            () = shared.keyring.lasting() => {}
        }
    }
    let uplink = Uplink {
        server: &config.server,
        tls: &config.tls,
        proxy: config.proxy.as_ref(),
        slot: match config.dialect {
            Dialect::Native => Some(LinkId {
                instance: shared.instance,
                slot,
            }),
            Dialect::Remotedialer => None,
        },
        name: (handshake::NAME_HEADER, &config.name),
        token_header: config.token_header.clone(),
        keyring: &shared.keyring,
        dialect: config.dialect,
        timeout: config.connect_timeout,
        backoff: config.backoff,
        link: config.link,
    };
    let link = ToServer {
        shared: Arc::clone(&shared),
        slot,
        handle,
    };
    keep_up(&uplink, shared.clock, &shared.over, &link).await;
}

/// One link to the server.
struct ToServer {
    shared: Arc<Shared>,
    slot: u8,
    handle: scope::Handle,
}

impl Upkeep for ToServer {
    fn failed(&self, error: &ConnectError) {
        if let Some(metrics) = &self.shared.metrics {
            metrics.connect_failed(error.reason());
        }
    }

    async fn serve(&self, websocket: WebSocketStream<Transport>, id: u64) -> LinkError {
        serve(&self.shared, websocket, id, self.slot, &self.handle).await
    }
}

/// Serves one link to its end. The session owns every task that serves one of its streams.
async fn serve(
    shared: &Arc<Shared>,
    websocket: WebSocketStream<Transport>,
    id: u64,
    slot: u8,
    outer: &scope::Handle,
) -> LinkError {
    let whole = Owner {
        session: id,
        stream: 0,
    };
    let socket = websocket.get_ref().socket();
    socket.bind(Role::Link, whole, "link to the server");
    let metrics = match &shared.metrics {
        Some(metrics) => metrics.session_began(&shared.config.name, Party::Server),
        None => SessionMetrics::default(),
    };
    let link_socket = socket.mark();
    let now = shared.clock.now();
    let core = match shared.config.dialect {
        Dialect::Native => Core::native(Side::Agent, shared.config.mux, now),
        Dialect::Remotedialer => {
            let key = format!("{}/{id}", shared.config.name);
            Core::remotedialer(Side::Agent, &key, shared.config.remotedialer_mux, now)
        }
    };
    let session = Session::new(id, core, shared.clock, link_socket, metrics);
    tracing::info!(session = id, server = %shared.config.server, agent = shared.config.name, link = slot, "connected");
    let scope = Scope::new();
    scope.spawn(accept_streams(
        Arc::clone(shared),
        session.clone(),
        scope.handle(),
    ));
    shared.sessions.send_modify(|sessions| {
        sessions.insert(slot, session.clone());
    });
    if shared.over.is_cancelled() {
        session.drain();
    }
    let link = Link::new(websocket, session.clone(), shared.config.link, shared.clock);
    let span = tracing::debug_span!("session", agent = shared.config.name, session = id);
    let error = link.run_until(outer.cancelled()).instrument(span).await;
    if let Some(metrics) = &shared.metrics
        && error.is_too_long()
    {
        metrics.limit_rejected("frame_size");
    }
    shared.sessions.send_modify(|sessions| {
        sessions.remove(&slot);
    });
    scope.end(TEARDOWN).await;
    error
}

async fn accept_streams(shared: Arc<Shared>, session: Session, handle: scope::Handle) {
    while let Some(incoming) = session.accept().await {
        let owner = incoming.owner();
        let span = tracing::debug_span!(
            "stream",
            agent = shared.config.name,
            session = owner.session,
            stream = owner.stream,
        );
        handle.spawn(serve_stream(Arc::clone(&shared), incoming).instrument(span));
    }
}

async fn serve_stream(shared: Arc<Shared>, incoming: Incoming) {
    let target = std::str::from_utf8(incoming.target())
        .ok()
        .and_then(|text| text.parse::<Target>().ok());
    // remotedialer's dialect cannot say where a datagram ends.
    let target = target.filter(|target| match (target, shared.config.dialect) {
        (Target::Udp(_), Dialect::Remotedialer) => false,
        (_, Dialect::Native | Dialect::Remotedialer) => true,
    });
    let Some(target) = target else {
        incoming.refuse(Reason::Protocol);
        return;
    };
    let owner = incoming.owner();
    incoming.count(&target);
    let policy = shared.policy();
    let dialed = tokio::select! {
        biased;
        _ = incoming.ended() => return,
        dialed = dial(&target, owner, &policy, shared.config.dial_timeout) => dialed,
    };
    match dialed {
        Ok(Dialed::Stream(socket)) => match incoming.accept() {
            Ok(stream) => {
                socket.set_options(shared.config.splice.tcp);
                let ending = splice(socket, stream, shared.config.splice).await;
                tracing::debug!(%target, %ending, "target released");
            }
            Err(_) => socket.reset_on_release(),
        },
        Ok(Dialed::Datagrams(socket)) => {
            if let Ok(stream) = incoming.accept() {
                serve_flow(&shared, socket, stream).await;
                tracing::debug!(%target, "target released");
            }
        }
        Err(reason) => {
            if let Some(metrics) = &shared.metrics {
                metrics.open_failed(reason.name());
                if reason == Reason::TimedOut {
                    metrics.stream_timed_out(Timeout::Dial);
                }
            }
            incoming.refuse(reason);
        }
    }
}

/// Carries the datagrams of a flow. When it is over, so is the stream, and then the socket goes.
async fn serve_flow(shared: &Shared, socket: DatagramSocket, stream: Stream) {
    let metrics = shared.metrics.as_deref();
    let (inlet, outlet) = datagrams::queue(shared.config.datagrams.queue);
    let receive = async {
        let mut buffer = BytesMut::new();
        while let Ok(datagram) = socket.receive(&mut buffer).await {
            if let Err(dropped) = inlet.offer(datagram) {
                datagrams::count(metrics, dropped);
            }
        }
    };
    // The server knows when a flow is idle.
    let send = |datagram: &[u8]| socket.send(datagram);
    let carry = datagrams::carry(stream, outlet, send, None, metrics);
    tokio::select! {
        _ = carry => {}
        () = receive => {}
    }
}
