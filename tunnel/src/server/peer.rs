//! Other servers. Each server dials its peers and announces its own agents to them. The dialed
//! server opens streams to those agents over that link.
//!
//! A stream from a peer goes to a local agent or nowhere. It makes at most one hop, so loops are
//! impossible.

use std::sync::Arc;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::http::HeaderName;
use tracing::Instrument as _;
use tunnel_proto::mux::Reason;
use tunnel_proto::target::Target;
use tunnel_proto::wire::frame::Side;
use tunnel_proto::wire::handshake::{PEER_NAME_HEADER, PEER_TOKEN_HEADER, Party};
use tunnel_proto::wire::{Dialect, handshake};

use crate::io::scope;
use crate::io::scope::Scope;
use crate::io::socket::{Owner, Role};
use crate::io::tls::Transport;
use crate::metrics::PeerMetrics;
use crate::relay::streams::relay;
use crate::server::agents::entry::Entry;
use crate::server::auth::peers::{Peer, Peers};
use crate::server::open::{Entrypoint, OpenRefused, OpenRequest};
use crate::server::shared::{Shared, TEARDOWN};
use crate::session::link::{Link, LinkError};
use crate::session::{Core, Incoming, Session, Stream};
use crate::uplink::dial::Uplink;
use crate::uplink::keyring::Keyring;
use crate::uplink::reconnect::{LinkHandler, keep_connected};

/// Keeps a link to one peer connected until `links` end or the server drains.
pub(crate) async fn stay_connected(
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    keyring: Arc<Keyring>,
    peer: Peer,
    links: scope::Handle,
) {
    let metrics = shared.metrics.peer(&peer.id);
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
    let link = PeerLink {
        shared: &shared,
        id: &peer.id,
        metrics,
        links,
    };
    keep_connected(&uplink, shared.clock, &shared.draining, &link).await;
}

/// The link to one peer.
struct PeerLink<'a> {
    shared: &'a Arc<Shared>,
    id: &'a str,
    metrics: PeerMetrics,
    links: scope::Handle,
}

impl LinkHandler for PeerLink<'_> {
    fn connecting(&self) {
        self.metrics.attempted();
    }

    /// Announces the local agents while the link is up. The session's scope owns the tasks of its
    /// streams.
    async fn serve(&self, websocket: WebSocketStream<Transport>, id: u64) -> LinkError {
        let Self { shared, links, .. } = self;
        let whole = Owner {
            session: id,
            stream: 0,
        };
        let label = format!("link to the peer {}", self.id);
        let socket = websocket.get_ref().socket();
        socket.bind(Role::Link, whole, &label);
        let from = socket.peer_addr();
        let metrics = shared.metrics.session_began(self.id, Party::Server);
        let now = shared.clock.now();
        let name = format!("{}/{id}", self.id);
        let core = Core::remotedialer(Side::Agent, &name, shared.config.remotedialer_mux, now);
        let link_socket = websocket.get_ref().socket().mark();
        let session = Session::new(id, core, shared.clock, link_socket, metrics);
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
            is_first: true,
            from,
        };
        shared.registry.insert_listener(self.id, entry);
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

/// Joins a stream that a peer opened with a stream to the agent that it names.
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
                tracing::debug!(agent, %target, %ending, "a peer's stream ended");
            }
        }
        Err(refused) => incoming.refuse(refused.reason()),
    }
}

async fn open(shared: &Shared, agent: &str, target: &Target) -> Result<Stream, OpenRefused> {
    let open_request = OpenRequest {
        entrypoint: Entrypoint::Peer,
        user: None,
        agent,
        target,
    };
    let (_, stream) = shared.open_stream(open_request, |_| {}).await?;
    Ok(stream)
}

/// Reads `AGENT::PROTO/ADDRESS`.
fn parse(text: &[u8]) -> Option<(String, Target)> {
    let (agent, target) = std::str::from_utf8(text).ok()?.split_once("::")?;
    let agent = handshake::is_name(agent).then(|| agent.to_owned())?;
    let target = target.parse().ok()?;
    // The peers' dialect has no datagram boundaries.
    let carried = match target {
        Target::Tcp(_) | Target::Unix(_) => true,
        Target::Udp(_) => false,
    };
    carried.then_some((agent, target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::auth::peers::PeerError;

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
