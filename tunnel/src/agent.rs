//! The private side: dials the server, and dials for the server what its policy allows.

use std::sync::Arc;
use std::time::Duration;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::http::HeaderName;

pub mod backoff;
mod connect;
mod dial;
pub mod policy;
mod upkeep;

pub use connect::{ServerUrl, ServerUrlError};

pub(crate) use connect::Uplink;
use policy::Policy;
pub(crate) use upkeep::{Upkeep, keep_up};

use crate::clock::Clock;
use crate::dialect::Dialect;
use crate::link::{self, Link, LinkError};
use crate::metrics::{Metrics, SessionMetrics};
use crate::mux::{self, Reason, Side, legacy};
use crate::scope::{self, Scope};
use crate::server::handshake;
use crate::session::{Core, Incoming, Party, Session};
use crate::socket::{Owner, Role, Socket};
use crate::splice::{self, splice};
use crate::target::Target;
use crate::token::Token;

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server's `ws://HOST:PORT/connect`.
    pub server: ServerUrl,
    /// The name under which visitors ask for this agent.
    pub name: String,
    /// What may be dialed.
    pub policy: Policy,
    /// The secret that the server knows.
    pub token: Token,
    /// How long resolving and dialing a target may take together.
    pub dial_timeout: Duration,
    /// How long connecting to the server and its handshake may take together.
    pub connect_timeout: Duration,
    /// The first and the longest wait between attempts to connect.
    pub backoff: (Duration, Duration),
    /// How the server talks.
    pub dialect: Dialect,
    /// The request header that carries the secret instead of `Authorization: Bearer`.
    pub token_header: Option<HeaderName>,
    /// Bounds of the session.
    pub mux: mux::Config,
    /// Bounds of the session in remotedialer's dialect.
    pub legacy: legacy::Config,
    /// Bounds of the link.
    pub link: link::Config,
    /// Bounds of each splice.
    pub splice: splice::Config,
}

impl Config {
    /// Returns the defaults around what has none.
    #[must_use]
    pub fn new(server: ServerUrl, name: String, policy: Policy, token: Token) -> Self {
        Self {
            server,
            name,
            policy,
            token,
            dial_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            dialect: Dialect::Native,
            token_header: None,
            mux: mux::Config::default(),
            legacy: legacy::Config::default(),
            link: link::Config::default(),
            splice: splice::Config::default(),
        }
    }
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
    metrics: Option<Arc<Metrics>>,
    session: tokio::sync::watch::Sender<Option<Session>>,
}

impl Agent {
    /// Starts an agent, which connects and stays connected.
    #[must_use]
    pub fn start(config: Config, metrics: Option<Arc<Metrics>>) -> Self {
        let scope = Scope::new();
        let shared = Arc::new(Shared {
            config,
            clock: Clock::start(),
            metrics,
            session: tokio::sync::watch::Sender::new(None),
        });
        scope.spawn(stay_connected(Arc::clone(&shared), scope.handle()));
        Self { scope, shared }
    }

    /// Returns the counters, if it has any.
    #[must_use]
    pub fn counters(&self) -> Option<&Metrics> {
        self.shared.metrics.as_deref()
    }

    /// Waits until the agent is connected.
    pub async fn connected(&self) {
        let mut session = self.shared.session.subscribe();
        // The sender lives as long as `self`.
        let _ = session.wait_for(Option::is_some).await;
    }

    /// Waits until the agent is not connected.
    pub async fn disconnected(&self) {
        let mut session = self.shared.session.subscribe();
        // The sender lives as long as `self`.
        let _ = session.wait_for(Option::is_none).await;
    }

    /// Waits until the agent serves no stream.
    pub async fn quiet(&self) {
        let session = self.shared.session.borrow().clone();
        if let Some(session) = session {
            session.quiet().await;
        }
    }

    /// Takes no new streams, waits until `deadline` for those that are open, resets the rest and ends the link.
    pub async fn drain(self, deadline: Duration) {
        let session = self.shared.session.borrow().clone();
        if let Some(session) = session {
            session.drain();
            let quiet = async {
                session.quiet().await;
                if !session.acknowledges() {
                    tokio::time::sleep(splice::LAST_WORDS).await;
                }
            };
            if tokio::time::timeout(deadline, quiet).await.is_err() && session.streams() > 0 {
                tracing::warn!(
                    streams = session.streams(),
                    "streams are left at the drain deadline; they are reset"
                );
            }
        }
        self.scope.end(TEARDOWN).await;
    }
}

/// How long tasks may take to let go after everything they wait for has ended.
const TEARDOWN: Duration = Duration::from_secs(2);

async fn stay_connected(shared: Arc<Shared>, handle: scope::Handle) {
    let config = &shared.config;
    let uplink = Uplink {
        server: &config.server,
        name: (handshake::NAME_HEADER, &config.name),
        token_header: config.token_header.clone(),
        token: &config.token,
        dialect: config.dialect,
        timeout: config.connect_timeout,
        backoff: config.backoff,
        link: config.link,
    };
    let links = Links {
        shared: Arc::clone(&shared),
        handle: handle.clone(),
    };
    keep_up(&uplink, shared.clock, handle.cancelled(), &links).await;
}

struct Links {
    shared: Arc<Shared>,
    handle: scope::Handle,
}

impl Upkeep for Links {
    async fn serve(&self, websocket: WebSocketStream<Socket>, id: u64) -> LinkError {
        serve(&self.shared, websocket, id, &self.handle).await
    }
}

/// Serves one link to its end. The session owns every task that serves one of its streams.
async fn serve(
    shared: &Arc<Shared>,
    websocket: WebSocketStream<Socket>,
    id: u64,
    outer: &scope::Handle,
) -> LinkError {
    let whole = Owner {
        session: id,
        stream: 0,
    };
    websocket
        .get_ref()
        .bind(Role::Link, whole, "link to the server");
    let metrics = match &shared.metrics {
        Some(metrics) => metrics.session_began(&shared.config.name, Party::Server),
        None => SessionMetrics::default(),
    };
    let carrier = websocket.get_ref().mark();
    let now = shared.clock.now();
    let core = match shared.config.dialect {
        Dialect::Native => Core::native(Side::Agent, shared.config.mux, now),
        Dialect::Remotedialer => {
            let key = format!("{}/{id}", shared.config.name);
            Core::remotedialer(Side::Agent, &key, shared.config.legacy, now)
        }
    };
    let session = Session::new(id, core, shared.clock, carrier, metrics);
    tracing::info!(session = id, server = %shared.config.server, agent = shared.config.name, "connected");
    let scope = Scope::new();
    scope.spawn(accept_streams(
        Arc::clone(shared),
        session.clone(),
        scope.handle(),
    ));
    shared.session.send_replace(Some(session.clone()));
    let link = Link::new(websocket, session.clone(), shared.config.link, shared.clock);
    let error = link.run_until(outer.cancelled()).await;
    shared.session.send_replace(None);
    scope.end(TEARDOWN).await;
    error
}

async fn accept_streams(shared: Arc<Shared>, session: Session, handle: scope::Handle) {
    while let Some(incoming) = session.accept().await {
        handle.spawn(serve_stream(Arc::clone(&shared), incoming));
    }
}

async fn serve_stream(shared: Arc<Shared>, incoming: Incoming) {
    let target = std::str::from_utf8(incoming.target())
        .ok()
        .and_then(|text| text.parse::<Target>().ok());
    let Some(target) = target else {
        incoming.refuse(Reason::Protocol);
        return;
    };
    let owner = incoming.owner();
    incoming.count(&target);
    let dialed = tokio::select! {
        biased;
        _ = incoming.ended() => return,
        dialed = dial::dial(&target, owner, &shared.config.policy, shared.config.dial_timeout) => dialed,
    };
    match dialed {
        Ok(socket) => match incoming.accept() {
            Ok(stream) => {
                let ending = splice(socket, stream, shared.config.splice).await;
                tracing::debug!(stream = owner.stream, %target, %ending, "target released");
            }
            Err(_) => socket.reset_on_release(),
        },
        Err(reason) => {
            if let Some(metrics) = &shared.metrics {
                metrics.open_failed(reason.name());
            }
            incoming.refuse(reason);
        }
    }
}
