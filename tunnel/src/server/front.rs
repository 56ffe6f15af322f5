//! The HTTP front: `/connect` for agents, `/client/{agent}/{scheme}/{host[:port]}/{path}` for visitors.

pub(crate) mod exchange;
pub(crate) mod request;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tunnel_proto::mux::OpenError;
use tunnel_proto::wire::Dialect;
use tunnel_proto::wire::handshake::{OWN_TOKEN_HEADER, Party, SESSION_HEADER};
use tunnel_proto::wire::native::SUBPROTOCOL;

use crate::io::socket::{Listener, NOBODY, Role, Socket};
use crate::io::tls::{Identity, Transport};
use crate::io::token::Digest;
use crate::io::{random, scope, tls};
use crate::server::auth::access::Credential;
use crate::server::auth::admission::{Entrance, RedeemError};
use crate::server::auth::handshake;
use crate::server::auth::handshake::{Accepted, HandshakeContext};
use crate::server::front::exchange::{Exchange, ExchangeBody, carry};
use crate::server::front::request::{Address, rewrite, strip_hop_by_hop};
use crate::server::ingress::{Caller, serve_caller};
use crate::server::open::{Entrypoint, Failure, OpenRefused, Visit};
use crate::server::shared::Shared;
use crate::server::visitor::{Serving, VisitorIo};

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
        let Some(permit) = shared.connection().await else {
            return;
        };
        let socket = listener.accept().await;
        let (shared, links) = (Arc::clone(&shared), links.clone());
        visitors.spawn_interruptible(async move {
            let _permit = permit;
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
            serve_connection(shared, transport, identity, links).await;
        });
    }
}

/// Shakes hands by TLS. A handshake that fails costs its own connection.
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
                // As those do who look whether anybody listens.
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
    links: scope::Handle,
) {
    let hung_up = transport.socket().hung_up();
    let (io, visitor) = VisitorIo::new(transport, shared.config.visitor_linger);
    let identity = Arc::new(identity);
    let peer = visitor.peer_addr();
    let must_end = visitor.must_end().clone();
    let asked_once = AtomicBool::new(false);
    let service = service_fn(|request| {
        asked_once.store(true, Ordering::Relaxed);
        let (shared, links) = (Arc::clone(&shared), links.clone());
        let identity = Arc::clone(&identity);
        let serving = visitor.begins();
        async move { Ok::<_, Infallible>(respond(shared, serving, &identity, links, request).await) }
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
                    tracing::debug!(visitor = %peer, %error, "visitor left early");
                }
                return;
            }
            // hyper does not read while a body is held up, so it would not see a reset.
            () = hung_up.as_mut() => return,
            () = must_end.cancelled() => return,
            () = shared.draining.cancelled(), if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn respond(
    shared: Arc<Shared>,
    serving: Serving,
    identity: &Identity,
    links: scope::Handle,
    request: Request<Incoming>,
) -> Response<FrontBody> {
    let path = request.uri().path();
    if path == "/connect" {
        return connect(&shared, identity, &links, request).await;
    }
    let Some(rest) = path.strip_prefix("/client/") else {
        return say(
            StatusCode::NOT_FOUND,
            "there is /client/{agent}/http/{host:port}/{path}",
        );
    };
    let address = match Address::parse(rest) {
        Ok(address) => address,
        Err((status, why)) => return say(status, why),
    };
    let peer = serving.visitor().peer_addr();
    match exchange(&shared, serving, &address, request).await {
        Ok(response) => response,
        Err((status, why)) => {
            tracing::debug!(visitor = %peer, agent = address.agent, target = %address.target, status = status.as_u16(), why, "request failed");
            say(status, &why)
        }
    }
}

async fn connect(
    shared: &Arc<Shared>,
    identity: &Identity,
    links: &scope::Handle,
    mut request: Request<Incoming>,
) -> Response<FrontBody> {
    let context = HandshakeContext {
        admission: &shared.admission,
        now: shared.clock.now(),
        remotedialer: shared.config.remotedialer.as_ref(),
        peers: shared.config.peers.as_deref(),
        identity,
    };
    let Accepted {
        party,
        name,
        dialect,
        entrance,
        link,
        accept_key,
    } = match handshake::check(&request, context) {
        Ok(accepted) => accepted,
        Err(refused) => {
            shared.metrics.agent_refused(refused.status.as_str());
            tracing::warn!(
                status = refused.status.as_u16(),
                why = refused.why,
                "an agent was refused"
            );
            return say(refused.status, refused.why);
        }
    };
    if shared.draining.is_cancelled() {
        return say(StatusCode::SERVICE_UNAVAILABLE, "the server is draining");
    }
    if party == Party::Agent && !shared.registry.has_room(&name, link) {
        shared.metrics.limit_rejected("sessions");
        return say(
            StatusCode::SERVICE_UNAVAILABLE,
            "as many links are connected as may be",
        );
    }
    let (credential, own_token) = match entrance {
        None => (None, None),
        Some(Entrance::Known(credential)) => (Some(credential), None),
        Some(Entrance::Invited(token)) => match redeem(shared, &name, token).await {
            Ok((credential, own)) => (Some(credential), Some(own)),
            Err((status, why)) => {
                tracing::warn!(name, why, "an invited agent was refused");
                return say(status, &why);
            }
        },
    };
    let id = random::session_id();
    let mut response = say(StatusCode::SWITCHING_PROTOCOLS, "");
    *response.body_mut() = Either::Right(Full::default());
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if dialect == Dialect::Native {
        headers.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
    }
    headers.insert(
        HeaderName::from_static(SESSION_HEADER),
        HeaderValue::from(id),
    );
    if let Some(own) = own_token {
        headers.insert(HeaderName::from_static(OWN_TOKEN_HEADER), own);
    }
    match HeaderValue::from_str(&accept_key) {
        Ok(key) => headers.insert(header::SEC_WEBSOCKET_ACCEPT, key),
        Err(_) => return say(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is malformed"),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let caller = Caller {
        party,
        name,
        dialect,
        link,
        credential,
        id,
    };
    links.spawn(serve_caller(
        Arc::clone(shared),
        upgrade,
        caller,
        links.clone(),
    ));
    response
}

/// Takes an invited agent in, and returns its credential and the header with its own token.
async fn redeem(
    shared: &Arc<Shared>,
    name: &str,
    token: Digest,
) -> Result<(Credential, HeaderValue), Failure> {
    let now = shared.clock.now();
    // One that is connected under this name by another token keeps it.
    let redeemed = if shared.registry.own(name).is_some() && !shared.admission.is_named(&token) {
        Err(RedeemError::NameTaken)
    } else {
        let (shared, name) = (Arc::clone(shared), name.to_owned());
        let redeem = move || shared.admission.redeem(&name, token, now);
        let failed = |error| Err(RedeemError::Io(std::io::Error::other(error)));
        tokio::task::spawn_blocking(redeem)
            .await
            .unwrap_or_else(failed)
    };
    let own = redeemed.map_err(|error| {
        let status = match &error {
            RedeemError::Gone => StatusCode::UNAUTHORIZED,
            RedeemError::NameTaken => StatusCode::CONFLICT,
            RedeemError::Full => StatusCode::SERVICE_UNAVAILABLE,
            RedeemError::Io(why) => {
                tracing::error!(name, error = %why, "cannot write the roster");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        (status, error.to_string())
    })?;
    tracing::info!(name, "joined by invitation");
    let mut header = HeaderValue::from_str(own.expose())
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    header.set_sensitive(true);
    Ok((Credential::of(&own), header))
}

async fn exchange(
    shared: &Arc<Shared>,
    serving: Serving,
    address: &Address,
    request: Request<Incoming>,
) -> Result<Response<FrontBody>, Failure> {
    let Address { agent, target, .. } = address;
    let request = rewrite(request, address)?;
    let visit = Visit {
        entrypoint: Entrypoint::Front,
        agent,
        target,
    };
    let refused = |refused: OpenRefused| refused.failure(agent, target);
    let (route, opening) = shared.open(visit).map_err(refused)?;
    serving
        .visitor()
        .serves(opening.owner(), &format!("{agent}/{target}"));
    let cancel = CancellationToken::new();
    let (opened, visitor) = (opening.watch(), Arc::clone(serving.visitor()));
    let exchange = Exchange::new(opening.watch(), serving, cancel.clone());
    let stream = shared.accepted(opening).await.map_err(refused)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| {
            (
                StatusCode::BAD_GATEWAY,
                format!("cannot speak HTTP to {target}: {error}"),
            )
        })?;
    let owner = opened.owner();
    let span = tracing::debug_span!(
        "stream",
        agent,
        session = owner.session,
        stream = owner.stream,
        %target,
    );
    let carry = async move {
        let carry = carry(connection, opened, &visitor);
        cancel.run_until_cancelled_owned(carry).await;
    };
    route.scope().spawn(carry.instrument(span));
    let response =
        tokio::time::timeout(shared.config.response_timeout, sender.send_request(request));
    match response.await {
        Ok(Ok(response)) => Ok(finish_response(response, exchange)),
        Ok(Err(error)) => Err(match exchange.refusal() {
            Some(reason) => {
                shared.metrics.open_failed(reason.name());
                OpenRefused::from(OpenError::Refused(reason)).failure(agent, target)
            }
            None => (
                StatusCode::BAD_GATEWAY,
                format!("{target} gave no valid response: {error}"),
            ),
        }),
        Err(_) => Err((
            StatusCode::GATEWAY_TIMEOUT,
            format!("{target} gave no response in time"),
        )),
    }
}

fn finish_response(mut response: Response<Incoming>, exchange: Exchange) -> Response<FrontBody> {
    strip_hop_by_hop(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    response.map(|body| Either::Left(ExchangeBody::new(body, exchange)))
}

fn say(status: StatusCode, why: &str) -> Response<FrontBody> {
    let mut response = Response::new(Either::Right(Full::from(format!("{why}\n"))));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
