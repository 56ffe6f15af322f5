//! Serves the connection of an agent or a peer after its handshake: from then on it is a link.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role as WsRole;
use tracing::Instrument as _;
use tunnel_proto::mux::Reason;
use tunnel_proto::wire::Dialect;
use tunnel_proto::wire::frame::Side;
use tunnel_proto::wire::handshake::{LinkId, Party};

use crate::io::scope;
use crate::io::scope::Scope;
use crate::io::socket::Role;
use crate::io::tls::Transport;
use crate::server::agents::entry::Entry;
use crate::server::auth::access::Credential;
use crate::server::shared::{Shared, TEARDOWN, within};
use crate::server::visitor::VisitorIo;
use crate::session::link::Link;
use crate::session::{Core, Session};

/// An agent or a peer whose handshake was accepted.
pub(crate) struct Caller {
    pub(crate) party: Party,
    pub(crate) name: String,
    pub(crate) dialect: Dialect,
    pub(crate) link: Option<LinkId>,
    pub(crate) credential: Credential,
    /// The identifier of its session.
    pub(crate) id: u64,
}

/// Serves a link until its session ends. The session's scope owns the tasks of its streams.
pub(crate) async fn serve_caller(
    shared: Arc<Shared>,
    upgrade: OnUpgrade,
    caller: Caller,
    links: scope::Handle,
) {
    let Some((transport, early)) = take_transport(&shared, upgrade, &caller).await else {
        return;
    };
    let core = core(&shared, &caller);
    let Caller {
        party,
        name,
        dialect,
        link: link_id,
        credential,
        id,
    } = caller;
    let socket = transport.socket();
    let from = socket.peer_addr();
    let metrics = shared.metrics.session_began(&name, party);
    let session = Session::new(id, core, shared.clock, socket.mark(), metrics);
    socket.bind(
        Role::Link,
        session.owner(),
        &format!("link of {name} at {from}"),
    );
    let websocket_config = Some(shared.config.link.websocket(dialect));
    let websocket =
        WebSocketStream::from_partially_read(transport, early, WsRole::Server, websocket_config)
            .await;
    let link = Link::new(websocket, session.clone(), shared.config.link, shared.clock);
    let scope = Scope::new();
    let entry = Entry {
        session: session.clone(),
        scope: scope.handle(),
        credential: Some(credential),
        is_first: link_id.is_none_or(|link| link.slot == 0),
        from,
    };
    let quota = match party {
        Party::Agent => Some(shared.quota(&name)),
        Party::Peer | Party::Server => None,
    };
    if let Some(throttle) = quota.as_ref().and_then(|quota| quota.throttle()) {
        session.throttle(Arc::clone(throttle));
    }
    match party {
        Party::Agent => {
            let terms = shared.terms(&name);
            let inserted = shared.registry.insert_agent(&name, link_id, entry, terms);
            if let Err(not_taken) = inserted {
                shared.count_not_taken(not_taken);
                session.end(Reason::Busy);
            }
        }
        Party::Peer | Party::Server => shared.registry.insert_peer(&name, entry),
    }
    // A revocation that came before the insert did not see this session.
    if !shared.still_admits(party, &name, credential) {
        session.end(Reason::Denied);
    }
    if shared.draining.is_cancelled() {
        session.drain();
    }
    let idle = session.clone().reset_idle(shared.config.splice.idle);
    let refusing = refuse_opens(session.clone());
    scope.spawn(async move {
        tokio::join!(refusing, idle);
    });
    tracing::info!(?party, name, session = id, from = %from, ?dialect, "connected");
    let span = tracing::debug_span!("session", ?party, agent = name, session = id);
    let error = link.run_until(links.cancelled()).instrument(span).await;
    shared.registry.remove(party, &name, id);
    if error.is_too_long() {
        shared.metrics.limit_rejected("frame_size");
    }
    let ended = scope.end(TEARDOWN).await;
    tracing::info!(?party, name, session = id, %error, ?ended, "gone");
}

/// Refuses streams that the other end opens: only the end that was dialed opens streams.
async fn refuse_opens(session: Session) {
    while let Some(incoming) = session.accept().await {
        incoming.refuse(Reason::Denied);
    }
}

/// Waits for the upgrade, and returns the connection with what was read from it already.
async fn take_transport(
    shared: &Shared,
    upgrade: OnUpgrade,
    caller: &Caller,
) -> Option<(Transport, Vec<u8>)> {
    let (party, name) = (caller.party, &caller.name);
    let upgraded = within(shared.config.header_timeout, upgrade).await;
    let upgraded = upgraded?.inspect_err(
        |error| tracing::info!(?party, name, %error, "the connection broke during the handshake"),
    );
    let Ok(parts) = upgraded.ok()?.downcast::<TokioIo<VisitorIo>>() else {
        tracing::error!(name, "the upgraded connection is not one of the front");
        return None;
    };
    let transport = parts.io.into_inner().into_transport();
    Some((transport, parts.read_buf.to_vec()))
}

/// Makes the protocol state of a session in the caller's dialect.
fn core(shared: &Shared, caller: &Caller) -> Core {
    let now = shared.clock.now();
    match caller.dialect {
        Dialect::Native => Core::native(Side::Server, shared.config.mux, now),
        Dialect::Remotedialer => {
            let key = format!("{}/{}", caller.name, caller.id);
            let mut config = shared.config.remotedialer_mux;
            if let (Party::Peer, Some(peers)) = (caller.party, &shared.config.peers) {
                config.clients_max = peers.clients_max;
            }
            Core::remotedialer(Side::Server, &key, config, now)
        }
    }
}
