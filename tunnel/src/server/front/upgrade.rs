//! `/connect`: a connection that becomes the link of an agent or a peer.

use std::sync::Arc;

use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tunnel_proto::replicas::Refusal;
use tunnel_proto::wire::Dialect;
use tunnel_proto::wire::handshake::{OWN_TOKEN_HEADER, Party, SESSION_HEADER};
use tunnel_proto::wire::native::SUBPROTOCOL;

use crate::io::socket::PeerAddr;
use crate::io::tls::Identity;
use crate::io::token::Digest;
use crate::io::{random, scope};
use crate::login::{Attempt, LoginPort, LoginRefused, address};
use crate::server::agents::registry::NotTaken;
use crate::server::auth::access::Credential;
use crate::server::auth::admission::{AdmittedBy, RedeemError};
use crate::server::auth::handshake;
use crate::server::auth::handshake::{Accepted, HandshakeContext, Refused};
use crate::server::front::{FrontBody, plain_text};
use crate::server::ingress::{Caller, serve_caller};
use crate::server::open::HttpFailure;
use crate::server::shared::Shared;

/// Answers a request for a link. The link is served by a task of `links`.
pub(super) async fn upgrade(
    shared: &Arc<Shared>,
    from: PeerAddr,
    identity: &Identity,
    links: &scope::Handle,
    mut request: Request<Incoming>,
) -> Response<FrontBody> {
    let accepted = match accept(shared, from, identity, &request).await {
        Ok(accepted) => accepted,
        Err((status, why)) => return plain_text(status, &why),
    };
    let (caller, response) = accepted;
    let upgrade = hyper::upgrade::on(&mut request);
    let shared = Arc::clone(shared);
    links.spawn(serve_caller(shared, upgrade, caller, links.clone()));
    response
}

/// Decides whether the caller gets a link, and returns the response that tells it so.
async fn accept(
    shared: &Arc<Shared>,
    from: PeerAddr,
    identity: &Identity,
    request: &Request<Incoming>,
) -> Result<(Caller, Response<FrontBody>), HttpFailure> {
    let Accepted {
        party,
        name,
        dialect,
        admitted_by,
        link,
        accept_key,
    } = check(shared, from, identity, request).await?;
    if shared.draining.is_cancelled() {
        let why = "the server is draining".to_owned();
        return Err((StatusCode::SERVICE_UNAVAILABLE, why));
    }
    if party == Party::Agent {
        let checked = shared.registry.check(&name, link, shared.terms(&name));
        checked.map_err(|not_taken| {
            tracing::info!(name, %not_taken, "refused an agent");
            shared.count_not_taken(not_taken);
            let status = match not_taken {
                NotTaken::Name(Refusal::Taken) => StatusCode::CONFLICT,
                NotTaken::Name(Refusal::Full) | NotTaken::Sessions => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
            };
            (status, not_taken.to_string())
        })?;
    }
    let (credential, own_token) = match admitted_by {
        AdmittedBy::Known(credential) => (credential, None),
        AdmittedBy::Invited(token) => {
            let redeemed = redeem(shared, &name, token).await;
            let (credential, own_token) = redeemed.inspect_err(|(_, why)| {
                tracing::warn!(name, why, "refused an agent with an invitation")
            })?;
            (credential, Some(own_token))
        }
    };
    let id = random::session_id();
    let response = switching_protocols(dialect, id, own_token, &accept_key)?;
    let caller = Caller {
        party,
        name,
        dialect,
        link,
        credential,
        id,
    };
    Ok((caller, response))
}

/// Checks the handshake. A refusal is counted and logged.
async fn check(
    shared: &Shared,
    from: PeerAddr,
    identity: &Identity,
    request: &Request<Incoming>,
) -> Result<Accepted, HttpFailure> {
    let peer_token = shared.peer_keyring.as_ref().map(|keyring| keyring.token());
    let peers = shared.config.peers.as_deref().zip(peer_token.as_ref());
    let name = handshake::claimed_name(request.headers());
    let is_peer = peers.is_some_and(|(peers, _)| peers.table.iter().any(|peer| peer.id == name));
    let attempt = Attempt {
        port: LoginPort::Agent,
        from,
        name: &name,
        exists: is_peer || shared.admission.access().knows(&name),
    };
    let refused = |status: StatusCode, why: String| {
        shared.metrics.agent_refused(status.as_str());
        (status, why)
    };
    let ticket = shared.logins.begin(attempt).map_err(|too_many| {
        let status = too_many.status(StatusCode::UNAUTHORIZED);
        refused(status, too_many.to_string())
    })?;
    let context = HandshakeContext {
        admission: &shared.admission,
        now: shared.clock.now(),
        remotedialer: shared.config.remotedialer.as_ref(),
        peers,
        identity,
    };
    match handshake::check(request, context) {
        Ok(accepted) => {
            ticket.right();
            Ok(accepted)
        }
        Err(Refused { status, why }) if status == StatusCode::UNAUTHORIZED => {
            match ticket.wrong().await {
                LoginRefused::Missing | LoginRefused::Wrong => Err(refused(status, why.to_owned())),
                too_many @ LoginRefused::TooMany(_) => {
                    Err(refused(too_many.status(status), too_many.to_string()))
                }
            }
        }
        Err(Refused { status, why }) => {
            if let Some(suppressed) = shared.logins.line() {
                let (address, status) = (address(from), status.as_u16());
                tracing::warn!(status, why, %address, suppressed, ?name, "refused an agent");
            }
            Err(refused(status, why.to_owned()))
        }
    }
}

/// Returns the response that turns the connection into a WebSocket (RFC 6455, section 4.2.2).
fn switching_protocols(
    dialect: Dialect,
    session: u64,
    own_token: Option<HeaderValue>,
    accept_key: &str,
) -> Result<Response<FrontBody>, HttpFailure> {
    let mut response = Response::new(Either::Right(Full::default()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if dialect == Dialect::Native {
        let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    let session_header = HeaderName::from_static(SESSION_HEADER);
    headers.insert(session_header, HeaderValue::from(session));
    if let Some(own_token) = own_token {
        headers.insert(HeaderName::from_static(OWN_TOKEN_HEADER), own_token);
    }
    let accept_key = HeaderValue::from_str(accept_key).map_err(|_| {
        let why = "Sec-WebSocket-Key is malformed".to_owned();
        (StatusCode::BAD_REQUEST, why)
    })?;
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept_key);
    Ok(response)
}

/// Redeems an invitation. Returns the agent's credential and the header with its own token.
async fn redeem(
    shared: &Arc<Shared>,
    name: &str,
    token: Digest,
) -> Result<(Credential, HeaderValue), HttpFailure> {
    let now = shared.clock.now();
    // An agent that is connected with another token keeps its name.
    let redeemed = if shared.registry.has(name) && !shared.admission.may_replace(&token) {
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
    tracing::info!(name, "agent joined by invitation");
    let mut header = HeaderValue::from_str(own.expose())
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    header.set_sensitive(true);
    Ok((Credential::of(&own), header))
}
