//! Keeps the links to the server connected and serves the streams that the server opens.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio_tungstenite::WebSocketStream;
use tracing::Instrument as _;
use tunnel_proto::mux::Reason;
use tunnel_proto::target::Target;
use tunnel_proto::wire::frame::Side;
use tunnel_proto::wire::handshake::{LinkId, Party};
use tunnel_proto::wire::{Dialect, handshake};

use crate::agent::Shared;
use crate::agent::dial::{Dialed, dial};
use crate::io::scope;
use crate::io::scope::Scope;
use crate::io::socket::{DatagramSocket, Owner, Role};
use crate::io::tls::Transport;
use crate::metrics::{SessionMetrics, Timeout};
use crate::relay::datagrams;
use crate::relay::splice::splice;
use crate::session::link::{Link, LinkError};
use crate::session::{Core, Incoming, Session, Stream};
use crate::uplink::dial::{ConnectError, Uplink};
use crate::uplink::reconnect::{LinkHandler, keep_connected};

/// How long tasks may take to end after they were cancelled.
pub(super) const TEARDOWN: Duration = Duration::from_secs(2);

/// Keeps one link connected until the agent drains or ends.
pub(super) async fn stay_connected(shared: Arc<Shared>, slot: u8, handle: scope::Handle) {
    let config = &shared.config;
    if slot > 0 {
        // An invitation works for one link only.
        tokio::select! {
            biased;
            () = shared.over.cancelled() => return,
            () = shared.keyring.reusable() => {}
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
    let link = ServerLink {
        shared: Arc::clone(&shared),
        slot,
        handle,
    };
    keep_connected(&uplink, shared.clock, &shared.over, &link).await;
}

/// One link to the server.
struct ServerLink {
    shared: Arc<Shared>,
    slot: u8,
    handle: scope::Handle,
}

impl LinkHandler for ServerLink {
    fn failed(&self, error: &ConnectError) {
        if let Some(metrics) = &self.shared.metrics {
            metrics.connect_failed(error.reason());
        }
    }

    async fn serve(&self, websocket: WebSocketStream<Transport>, id: u64) -> LinkError {
        serve(&self.shared, websocket, id, self.slot, &self.handle).await
    }
}

/// Serves one link until it ends. The session's scope owns the tasks of its streams.
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
    tracing::info!(
        session = id,
        server = %shared.config.server,
        agent = shared.config.name,
        link = slot,
        "connected"
    );
    let scope = Scope::new();
    let accepting = accept_streams(Arc::clone(shared), session.clone(), scope.handle());
    let idle = session.clone().reset_idle(shared.config.splice.idle);
    scope.spawn(async move {
        tokio::join!(accepting, idle);
    });
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
    // remotedialer's dialect has no datagram boundaries.
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
        dialed = dial(&target, owner, &policy, &shared.resolver, shared.config.dial_timeout) => dialed,
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

/// Carries the datagrams of a flow until it ends. Then the stream ends, and after it the socket is
/// closed.
async fn serve_flow(shared: &Shared, socket: DatagramSocket, stream: Stream) {
    let metrics = shared.metrics.as_deref();
    let (sender, receiver) = datagrams::queue(shared.config.datagrams.queue);
    let receive = async {
        let mut buffer = BytesMut::new();
        while let Ok(datagram) = socket.receive(&mut buffer).await {
            if let Err(dropped) = sender.try_send(datagram) {
                datagrams::count_dropped(metrics, dropped);
            }
        }
    };
    // The server enforces the idle timeout.
    let send = |datagram: &[u8]| socket.send(datagram);
    let carry = datagrams::carry(stream, receiver, send, None, metrics);
    tokio::select! {
        _ = carry => {}
        () = receive => {}
    }
}
