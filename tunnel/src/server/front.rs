//! The front: `/connect` for agents. And the HTTP ports:
//! `/client/{agent}/{scheme}/{host[:port]}/{path}` for visitors, on sockets of their own or on the
//! front's. And the HTTP proxy ports.

mod exchange;
mod login;
mod proxy;
mod request;
mod switch;
mod upgrade;
mod upload;
mod visit;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;

use crate::io::socket::{Listener, NOBODY, Role, Socket};
use crate::io::tls::{Identity, Transport};
use crate::io::{scope, tls};
use crate::server::budget::{Handshake, Place};
use crate::server::config::port::ProxyPort;
use crate::server::config::{HttpPort, HttpSocket};
use crate::server::front::exchange::ExchangeBody;
use crate::server::front::proxy::ProxyVisitor;
use crate::server::front::upgrade::upgrade;
use crate::server::front::visit::visit;
use crate::server::shared::Shared;
use crate::server::visitor::{RequestGuard, VisitorIo};

type FrontBody = Either<ExchangeBody, Full<Bytes>>;

/// What a connection is asked for.
enum Service {
    /// Links, and `/client/...` if an HTTP port shares the socket.
    Front {
        /// Owns the tasks of the links.
        links: scope::Handle,
        place: Mutex<Place>,
    },
    /// `/client/...`.
    Http {
        port: Arc<HttpPort>,
        /// Counts the connection among the visitors of the port.
        _permit: OwnedSemaphorePermit,
    },
    /// CONNECT, and requests in absolute form.
    Proxy(ProxyVisitor),
}

impl Service {
    /// Counts the connection among the visitors of its port. Returns `false` if there are as many
    /// as the configuration allows.
    fn let_in(&self, shared: &Shared) -> bool {
        match self {
            Self::Front { place, .. } => place
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .let_in(&shared.front_visitors, &shared.metrics),
            // Its listener has counted it.
            Self::Http { .. } | Self::Proxy(_) => true,
        }
    }
}

/// Serves the front's listener.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: Listener,
    visitors: scope::Handle,
    links: scope::Handle,
) {
    loop {
        let socket = listener.accept().await;
        let label = format!("connection from {}", socket.peer_addr());
        socket.bind(Role::Pool, NOBODY, &label);
        let handshake = shared.handshakes.begin(shared.clock, &shared.metrics).await;
        let (shared, links) = (Arc::clone(&shared), links.clone());
        visitors.spawn_interruptible(async move {
            let (peer, evicted) = (socket.peer_addr(), handshake.evicted());
            tokio::select! {
                biased;
                () = evicted.cancelled() => tracing::debug!(%peer, "a slow handshake made room"),
                () = serve_socket(shared, socket, handshake, links) => {}
            }
        });
    }
}

async fn serve_socket(
    shared: Arc<Shared>,
    socket: Socket,
    handshake: Handshake,
    links: scope::Handle,
) {
    if let Some((transport, identity)) = transport(&shared, socket, true).await {
        let place = Mutex::new(Place::from(handshake));
        let service = Service::Front { links, place };
        serve_connection(shared, transport, identity, service).await;
    }
}

/// Serves a visitor of an HTTP port that has a socket of its own.
pub(crate) async fn serve_visitor(
    shared: Arc<Shared>,
    port: Arc<HttpPort>,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    let secure = port.socket == HttpSocket::Tls;
    if let Some((transport, identity)) = transport(&shared, socket, secure).await {
        let service = Service::Http {
            port,
            _permit: permit,
        };
        serve_connection(shared, transport, identity, service).await;
    }
}

/// Serves a visitor of a proxy port until it has a stream of its own, which the session's scope owns.
pub(crate) async fn serve_proxy(
    shared: Arc<Shared>,
    proxy: ProxyPort,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    let permit = Arc::new(permit);
    let service = Service::Proxy(ProxyVisitor { proxy, permit });
    serve_connection(shared, socket.into(), Identity::default(), service).await;
}

/// Performs the TLS handshake, if the server has TLS and it is wanted. Returns `None` if it fails.
async fn transport(
    shared: &Shared,
    socket: Socket,
    secured: bool,
) -> Option<(Transport, Identity)> {
    match shared.tls.as_ref().filter(|_| secured) {
        None => Some((socket.into(), Identity::default())),
        Some(tls) => {
            let tls = tls.borrow().clone();
            secure(shared, &tls, socket).await
        }
    }
}

/// Performs the TLS handshake. Returns `None` if it fails.
async fn secure(
    shared: &Shared,
    tls: &tls::Server,
    socket: Socket,
) -> Option<(Transport, Identity)> {
    let peer = socket.peer_addr();
    socket.bind(Role::Pool, NOBODY, &format!("TLS handshake with {peer}"));
    let limit = shared.config.tls_handshake_timeout;
    let handshake = tokio::time::timeout(limit, tls.accept(socket));
    let handshake = tokio::select! {
        biased;
        handshake = handshake => handshake.unwrap_or(Err(tls::Failure::TimedOut)),
        () = shared.draining.cancelled() => return None,
    };
    match handshake {
        Ok(transport) => {
            let identity = tls.identity(&transport);
            Some((transport, identity))
        }
        Err(error) => {
            shared.metrics.tls_handshake_failed(error.reason());
            match error {
                // Port scans and health checks connect and leave.
                tls::Failure::Gone => tracing::debug!(%peer, %error, "a TLS handshake failed"),
                _ => tracing::info!(%peer, %error, "a TLS handshake failed"),
            }
            None
        }
    }
}

async fn serve_connection(
    shared: Arc<Shared>,
    transport: Transport,
    identity: Identity,
    service: Service,
) {
    let hung_up = transport.socket().hung_up();
    let (io, visitor) = VisitorIo::new(transport, &shared.config);
    let (identity, service) = (Arc::new(identity), Arc::new(service));
    let peer = visitor.peer_addr();
    let aborted = visitor.aborted().clone();
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, service) = (Arc::clone(&shared), Arc::clone(&service));
        let identity = Arc::clone(&identity);
        let serving = visitor.begin_request(!request.body().is_end_stream());
        async move {
            let response = respond(&shared, serving, &identity, &service, request).await;
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(shared.config.head_max)
        .max_headers(shared.config.header_lines_max)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut hung_up = std::pin::pin!(hung_up);
    let mut asked = false;
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    shared.count_head(&error, visitor.head_is_late());
                    tracing::debug!(visitor = %peer, %error, "the visitor's connection broke");
                }
                return;
            }
            // hyper does not read while a body is blocked, so it would not see a reset.
            () = hung_up.as_mut() => return,
            () = aborted.cancelled() => return,
            () = shared.draining.cancelled(), if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn respond(
    shared: &Arc<Shared>,
    serving: RequestGuard,
    identity: &Identity,
    service: &Arc<Service>,
    request: Request<Incoming>,
) -> Response<FrontBody> {
    // The paths of a proxy's requests are those of its targets.
    let is_proxy = matches!(**service, Service::Proxy(_));
    let health_path = shared.config.health_path.as_ref().filter(|_| !is_proxy);
    if health_path.is_some_and(|path| path.as_str() == request.uri().path()) {
        return health(request.method(), shared.draining.is_cancelled());
    }
    let port = match &**service {
        Service::Front { links, .. } if request.uri().path() == "/connect" => {
            let from = serving.visitor().peer_addr();
            return upgrade(shared, from, identity, links, request).await;
        }
        Service::Front { .. } => shared.front_http.borrow().clone(),
        Service::Http { port, .. } => Some(Arc::clone(port)),
        Service::Proxy(visitor) => {
            return proxy::respond(shared, visitor, serving, request).await;
        }
    };
    match port {
        Some(port) => visit(shared, &port, serving, identity, service, request).await,
        None => plain_text(
            StatusCode::NOT_FOUND,
            "this port is for agents; http = [\"listen\"] serves /client/{agent}/... here",
        ),
    }
}

/// Answers a health check. It tells everybody the same, and nothing about this program. The
/// connection ends, so that it does not count for long.
fn health(method: &Method, draining: bool) -> Response<FrontBody> {
    let (status, text) = match *method {
        Method::GET | Method::HEAD if draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        Method::GET | Method::HEAD => (StatusCode::OK, "ok\n"),
        _ => (StatusCode::METHOD_NOT_ALLOWED, ""),
    };
    let mut response = Response::new(Either::Right(Full::from(text)));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONNECTION, "close"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// Returns a response of this program. The header `Server` and the body tell it from a target's.
fn plain_text(status: StatusCode, why: &str) -> Response<FrontBody> {
    let mut response = Response::new(Either::Right(format!("watertight: {why}\n").into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    headers.insert(header::SERVER, HeaderValue::from_static("watertight"));
    response
}
