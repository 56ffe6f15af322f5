//! Other servers. Each dials the others and announces its own agents to them; who was dialed opens streams to these over that link.
//!
//! A stream from a peer goes to an own agent or nowhere, so it makes one hop at the most and loops are impossible.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::http::HeaderName;
use tracing::Instrument as _;

use super::handshake::{self, PEER_NAME_HEADER, PEER_TOKEN_HEADER};
use super::open::{Door, OpenRefused, Visit};
use super::registry::{Entry, Full};
use super::relay::relay;
use super::{Shared, TEARDOWN};
use crate::agent::{Keyring, ServerUrl, ServerUrlError, Upkeep, Uplink, keep_up};
use crate::dialect::Dialect;
use crate::link::{Link, LinkError};
use crate::metrics::PeerMetrics;
use crate::mux::{Reason, Side};
use crate::scope::{self, Scope};
use crate::session::{Core, Incoming, Party, Session, Stream};
use crate::socket::{Owner, Role};
use crate::target::Target;
use crate::tls::{self, Carrier};
use crate::token::Token;

/// What a server needs to know to have peers.
#[derive(Clone, Debug)]
pub struct Peers {
    /// The name by which the peers know this server.
    pub id: String,
    /// The secret that all of them share. It must not be that of the agents.
    pub token: Token,
    /// The other servers.
    pub table: Vec<Peer>,
    /// Which of them are trusted, and who this server is to them, where they are reached by TLS.
    pub tls: tls::Client,
    /// Sessions of agents that are remembered of each peer.
    pub clients_max: usize,
    /// How long connecting to a peer and the handshake may take together.
    pub connect_timeout: Duration,
    /// The first and the longest wait between attempts to connect.
    pub backoff: (Duration, Duration),
}

impl Peers {
    /// Returns the defaults around what has none.
    #[must_use]
    pub fn new(id: String, token: Token, table: Vec<Peer>) -> Self {
        Self {
            id,
            token,
            table,
            tls: tls::Client::default(),
            clients_max: 16_384,
            connect_timeout: Duration::from_secs(10),
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
        }
    }

    /// Returns the names of all servers, this one included.
    pub(super) fn names(&self) -> HashSet<String> {
        let table = self.table.iter().map(|peer| &peer.id);
        table.chain([&self.id]).cloned().collect()
    }
}

/// One other server: `ID=URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub id: String,
    /// Its `wss://HOST:PORT/connect` or `ws://HOST:PORT/connect`.
    pub url: ServerUrl,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.id, self.url)
    }
}

/// Why a text is not a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It has not two parts, or the first is not a name.
    #[error("{0:?} is not a peer: write ID=URL, as east=ws://10.0.0.2:8123/connect")]
    Malformed(String),
    /// The URL is wrong.
    #[error(transparent)]
    Url(#[from] ServerUrlError),
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((id, url)) if handshake::is_name(id) => Ok(Self {
                id: id.to_owned(),
                url: url.parse()?,
            }),
            Some(_) | None => Err(PeerError::Malformed(text.to_owned())),
        }
    }
}

/// Keeps a link to one peer up until `links` end or the server drains.
pub(super) async fn stay_connected(
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    peer: Peer,
    links: scope::Handle,
) {
    let metrics = shared.metrics.peer(&peer.id);
    let keyring = Keyring::new(peers.token.clone());
    let uplink = Uplink {
        server: &peer.url,
        tls: &peers.tls,
        proxy: None,
        slot: None,
        name: (PEER_NAME_HEADER, &peers.id),
        token_header: Some(HeaderName::from_static(PEER_TOKEN_HEADER)),
        keyring: &keyring,
        dialect: Dialect::Remotedialer,
        timeout: peers.connect_timeout,
        backoff: peers.backoff,
        link: shared.config.link,
    };
    let link = ToPeer {
        shared: &shared,
        id: &peer.id,
        metrics,
        links,
    };
    keep_up(&uplink, shared.clock, &shared.draining, &link).await;
}

/// The way to one peer.
struct ToPeer<'a> {
    shared: &'a Arc<Shared>,
    id: &'a str,
    metrics: PeerMetrics,
    links: scope::Handle,
}

impl Upkeep for ToPeer<'_> {
    fn attempts(&self) {
        self.metrics.attempted();
    }

    /// Announces the own agents as long as the link lives. The session owns every task that serves one of its streams.
    async fn serve(&self, websocket: WebSocketStream<Carrier>, id: u64) -> LinkError {
        let Self { shared, links, .. } = self;
        let whole = Owner {
            session: id,
            stream: 0,
        };
        let label = format!("link to the peer {}", self.id);
        let socket = websocket.get_ref().socket();
        socket.bind(Role::Link, whole, &label);
        let from = socket.peer();
        let metrics = shared.metrics.session_began(self.id, Party::Server);
        let now = shared.clock.now();
        let name = format!("{}/{id}", self.id);
        let core = Core::remotedialer(Side::Agent, &name, shared.config.legacy, now);
        let carrier = websocket.get_ref().socket().mark();
        let session = Session::new(id, core, shared.clock, carrier, metrics);
        let link = Link::new(websocket, session.clone(), shared.config.link, shared.clock);
        let scope = Scope::new();
        scope.spawn(relay_streams(
            Arc::clone(shared),
            session.clone(),
            scope.handle(),
        ));
        let entry = Entry {
            session: session.clone(),
            scope: scope.handle(),
            credential: None,
            from,
        };
        if let Err(Full) = shared.registry.insert(Party::Server, self.id, None, entry) {
            session.end(Reason::Busy);
        }
        self.metrics.connected();
        tracing::info!(peer = self.id, session = id, "connected to a peer");
        let span = tracing::debug_span!("session", peer = self.id, session = id);
        let error = link.run_until(links.cancelled()).instrument(span).await;
        self.metrics.disconnected();
        shared.registry.remove(Party::Server, self.id, id);
        scope.end(TEARDOWN).await;
        error
    }
}

async fn relay_streams(shared: Arc<Shared>, session: Session, handle: scope::Handle) {
    while let Some(incoming) = session.accept().await {
        let owner = incoming.owner();
        let span = tracing::debug_span!("stream", session = owner.session, stream = owner.stream);
        handle.spawn(relay_stream(Arc::clone(&shared), incoming).instrument(span));
    }
}

/// Joins a stream that a peer opened to one that it stands for.
async fn relay_stream(shared: Arc<Shared>, incoming: Incoming) {
    let Some((agent, target)) = parse(incoming.target()) else {
        incoming.refuse(Reason::Protocol);
        return;
    };
    let opened = tokio::select! {
        biased;
        _ = incoming.ended() => return,
        opened = open(&shared, &agent, &target) => opened,
    };
    match opened {
        Ok(far) => {
            if let Ok(near) = incoming.accept() {
                let ending = relay(near, far, shared.config.splice.piece).await;
                tracing::debug!(agent, %target, %ending, "a peer's stream is over");
            }
        }
        Err(refused) => incoming.refuse(refused.reason()),
    }
}

async fn open(shared: &Shared, agent: &str, target: &Target) -> Result<Stream, OpenRefused> {
    let visit = Visit {
        door: Door::Peer,
        agent,
        target,
    };
    let (_, opening) = shared.open(visit)?;
    shared.accepted(opening).await
}

/// Reads `AGENT::PROTO/ADDRESS`.
fn parse(text: &[u8]) -> Option<(String, Target)> {
    let (agent, target) = std::str::from_utf8(text).ok()?.split_once("::")?;
    let agent = handshake::is_name(agent).then(|| agent.to_owned())?;
    let target = target.parse().ok()?;
    // The peer's dialect cannot say where a datagram ends.
    let carried = match target {
        Target::Tcp(_) | Target::Unix(_) => true,
        Target::Udp(_) => false,
    };
    carried.then_some((agent, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_read_back_as_written() {
        let text = "east=ws://127.0.0.1:8123/connect";
        assert_eq!(text.parse::<Peer>().unwrap().to_string(), text);
        for wrong in ["", "east", "=ws://a/connect", "a b=ws://a/connect"] {
            assert!(matches!(
                wrong.parse::<Peer>(),
                Err(PeerError::Malformed(_))
            ));
        }
        assert!(matches!("a=a".parse::<Peer>(), Err(PeerError::Url(_))));
    }

    #[test]
    fn a_peers_connect_names_an_agent_and_a_target() {
        let (agent, target) = parse(b"web::tcp/[::1]:80").unwrap();
        assert_eq!(
            (agent.as_str(), target.to_string().as_str()),
            ("web", "tcp/[::1]:80")
        );
        for text in [
            "tcp/[::1]:80",
            "web::",
            "::tcp/a:1",
            "a::b::tcp/a:1",
            "web::tcp/a",
            "web::udp/a:1",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
