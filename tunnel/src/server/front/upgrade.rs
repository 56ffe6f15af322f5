//! `/connect`: a connection that becomes the link of an agent or a peer.

use std::sync::Arc;

use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tunnel_proto::wire::Dialect;
use tunnel_proto::wire::handshake::{OWN_TOKEN_HEADER, Party, SESSION_HEADER};
use tunnel_proto::wire::native::SUBPROTOCOL;

use crate::io::tls::Identity;
use crate::io::token::Digest;
use crate::io::{random, scope};
use crate::server::auth::access::Credential;
use crate::server::auth::admission::{Entrance, RedeemError};
use crate::server::auth::handshake;
use crate::server::auth::handshake::{Accepted, HandshakeContext};
use crate::server::front::{FrontBody, say};
use crate::server::ingress::{Caller, serve_caller};
use crate::server::open::Failure;
use crate::server::shared::Shared;

pub(super) async fn upgrade(
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
