//! The HTTP front: `/connect` for agents, `/client/{agent}/{scheme}/{host[:port]}/{path}` for
//! visitors.

mod exchange;
mod request;
mod upgrade;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::io::socket::{Listener, NOBODY, Role, Socket};
use crate::io::tls::{Identity, Transport};
use crate::io::{scope, tls};
use crate::server::budget::{Handshake, Place};
use crate::server::front::exchange::{ExchangeBody, exchange};
use crate::server::front::request::Address;
use crate::server::front::upgrade::upgrade;
use crate::server::shared::Shared;
use crate::server::visitor::{RequestGuard, VisitorIo};

/// The longest head of a request in bytes.
pub(crate) const HEAD_MAX: usize = 64 * 1024;

type FrontBody = Either<ExchangeBody, Full<Bytes>>;

pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: Listener,
    visitors: scope::Handle,
    links: scope::Handle,
) {
    loop {
        let socket = listener.accept().await;
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
    let (transport, identity) = match &shared.tls {
        None => (socket.into(), Identity::default()),
        Some(tls) => {
            let tls = tls.borrow().clone();
            match secure(&shared, &tls, socket).await {
                Some(secured) => secured,
                None => return,
            }
        }
    };
    serve_connection(shared, transport, identity, handshake, links).await;
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
    handshake: Handshake,
    links: scope::Handle,
) {
    let place = Arc::new(Mutex::new(Place::from(handshake)));
    let hung_up = transport.socket().hung_up();
    let (io, visitor) = VisitorIo::new(transport, shared.config.visitor_linger);
    let identity = Arc::new(identity);
    let peer = visitor.peer_addr();
    let aborted = visitor.aborted().clone();
    let asked_once = AtomicBool::new(false);
    let service = service_fn(|request| {
        asked_once.store(true, Ordering::Relaxed);
        let (shared, links) = (Arc::clone(&shared), links.clone());
        let identity = Arc::clone(&identity);
        let (serving, place) = (visitor.begin_request(), Arc::clone(&place));
        async move {
            let response = respond(shared, serving, &place, &identity, links, request);
            Ok::<_, Infallible>(response.await)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.config.header_timeout)
        .max_buf_size(HEAD_MAX)
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
                    shared.count_head(&error, asked_once.load(Ordering::Relaxed));
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
    shared: Arc<Shared>,
    serving: RequestGuard,
    place: &Mutex<Place>,
    identity: &Identity,
    links: scope::Handle,
    request: Request<Incoming>,
) -> Response<FrontBody> {
    let path = request.uri().path();
    if path == "/connect" {
        return upgrade(&shared, identity, &links, request).await;
    }
    let Some(rest) = path.strip_prefix("/client/") else {
        return plain_text(
            StatusCode::NOT_FOUND,
            "there is /client/{agent}/http/{host:port}/{path}",
        );
    };
    let address = match Address::parse(rest) {
        Ok(address) => address,
        Err((status, why)) => return plain_text(status, why),
    };
    let let_in = place
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .let_in(&shared.front_visitors, &shared.metrics);
    if !let_in {
        return plain_text(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server has as many visitors as its configuration allows",
        );
    }
    let peer = serving.visitor().peer_addr();
    match exchange(&shared, serving, &address, request).await {
        Ok(response) => response,
        Err((status, why)) => {
            tracing::debug!(
                visitor = %peer,
                agent = address.agent,
                target = %address.target,
                status = status.as_u16(),
                why,
                "request failed"
            );
            plain_text(status, &why)
        }
    }
}

fn plain_text(status: StatusCode, why: &str) -> Response<FrontBody> {
    let mut response = Response::new(Either::Right(Full::from(format!("{why}\n"))));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
