//! A visitor's request to an HTTP port, from its head to its response.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use tunnel_proto::listen::Listen;

use crate::http::{forwarded, host, origin};
use crate::io::tls::Identity;
use crate::server::config::{HttpPort, HttpSocket};
use crate::server::front::exchange::exchange;
use crate::server::front::login::{login, refusal};
use crate::server::front::request::Address;
use crate::server::front::{FrontBody, Service, plain_text};
use crate::server::open::Entrypoint;
use crate::server::shared::Shared;
use crate::server::visitor::RequestGuard;

/// Serves a request. What does not depend on the agent is checked first, so that a client that is
/// not let in learns nothing about agents. Then `service` counts the connection among the visitors
/// of its port, if there is room.
pub(super) async fn visit(
    shared: &Arc<Shared>,
    port: &HttpPort,
    serving: RequestGuard,
    identity: &Identity,
    service: &Arc<Service>,
    mut request: Request<Incoming>,
) -> Response<FrontBody> {
    // No web page reaches a Unix socket, and its clients name any host.
    let named = match port.listen {
        Listen::Inet(_) => host::check(&request, &port.hosts, "http-host"),
        Listen::Unix(_) => Ok(()),
    };
    if let Err((status, why)) = named {
        return plain_text(status, why.trim_end());
    }
    if let Err(why) = origin::check(&request, &port.origins) {
        return plain_text(StatusCode::FORBIDDEN, why);
    }
    let peer = serving.visitor().peer_addr();
    let trusted = &port.trusted_proxies;
    let visitor = forwarded::visitor(request.headers(), peer, trusted);
    let user = match login(shared, port, visitor, identity, &mut request).await {
        Ok(user) => user,
        Err(refused) => return refusal(refused),
    };
    let Some(rest) = request.uri().path().strip_prefix("/client/") else {
        return plain_text(
            StatusCode::NOT_FOUND,
            "there is /client/{agent}/http/{host:port}/{path}",
        );
    };
    let address = match Address::parse(rest) {
        Ok(address) => address,
        Err((status, why)) => return plain_text(status, why),
    };
    if !service.let_in(shared) {
        return plain_text(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server has as many visitors as its configuration allows",
        );
    }
    let scheme = match port.socket {
        HttpSocket::Plain => "http",
        HttpSocket::Tls => "https",
        HttpSocket::Shared if shared.tls.is_some() => "https",
        HttpSocket::Shared => "http",
    };
    forwarded::tell(request.headers_mut(), peer, scheme, trusted);
    let entrypoint = Entrypoint::Port {
        kind: "http",
        listen: &port.listen,
    };
    let user = user.as_deref();
    let held = Arc::clone(service);
    match exchange(shared, entrypoint, user, serving, &address, request, held).await {
        Ok(response) => response,
        Err((status, why)) => {
            tracing::debug!(
                %visitor,
                user,
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
