//! HTTP proxy ports: visitors name their targets by CONNECT (RFC 9110, section 9.3.6), or by the
//! absolute form of an `http` request (RFC 9112, section 3.2.2).

use std::sync::Arc;

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tunnel_proto::mux::Reason;
use tunnel_proto::target::Target;

use crate::http::authorization::Sent;
use crate::io::socket::{PeerAddr, Socket};
use crate::io::tls::Transport;
use crate::login::{LoginPort, LoginRefused};
use crate::relay::splice::splice_after;
use crate::server::config::port::ProxyPort;
use crate::server::front::exchange::exchange;
use crate::server::front::request::Address;
use crate::server::front::{FrontBody, plain_text};
use crate::server::open::{Entrypoint, HttpFailure, OpenRefused, OpenRequest};
use crate::server::shared::{Shared, within};
use crate::server::visitor::{RequestGuard, VisitorIo};
use crate::session::Stream;

/// A connection to a proxy port.
pub(super) struct ProxyVisitor {
    pub(super) proxy: ProxyPort,
    /// Counts the connection against the limit, until the task that serves it ends.
    pub(super) permit: Arc<OwnedSemaphorePermit>,
}

type Answer = Response<FrontBody>;

/// Serves one request of a visitor.
pub(super) async fn respond(
    shared: &Arc<Shared>,
    visitor: &ProxyVisitor,
    serving: RequestGuard,
    request: Request<Incoming>,
) -> Answer {
    let answer = if request.method() == Method::CONNECT {
        // A visitor that ends its input during the dial does not wait for the stream.
        serving.visitor().ends_with_input();
        connect(shared, visitor, serving, request).await
    } else {
        forward(shared, visitor, serving, request).await
    };
    answer.unwrap_or_else(|refusal| refusal)
}

/// Serves CONNECT.
async fn connect(
    shared: &Arc<Shared>,
    visitor: &ProxyVisitor,
    serving: RequestGuard,
    mut request: Request<Incoming>,
) -> Result<Answer, Answer> {
    let proxy = &visitor.proxy;
    let target = connect_target(&request).map_err(|(status, why)| refuse(status, &why))?;
    let peer = serving.visitor().peer_addr();
    let user = login(shared, proxy, peer, &request).await?;
    let open_request = OpenRequest {
        entrypoint: entrypoint(proxy),
        user: user.as_deref(),
        agent: &proxy.agent,
        target: &target,
    };
    let failed = |refused: OpenRefused| {
        let (status, why) = refused.failure(&proxy.agent, &target);
        match refused.reason() {
            Reason::Denied => refuse(StatusCode::FORBIDDEN, &why),
            _ => refuse(status, &why),
        }
    };
    let destination = format!("{}/{target}", proxy.agent);
    let serves = |owner| serving.visitor().serves(owner, &destination);
    let opened = shared.open_stream(open_request, serves).await;
    let (route, stream) = opened.map_err(failed)?;
    let upgrade = hyper::upgrade::on(&mut request);
    let (shared, permit) = (Arc::clone(shared), Arc::clone(&visitor.permit));
    route.scope().spawn(async move {
        let _permit = permit;
        carry(&shared, upgrade, stream).await;
        // Until here the connection belongs to the stream.
        drop(serving);
    });
    Ok(Response::new(Either::Right(Full::default())))
}

/// Serves a request in absolute form.
async fn forward(
    shared: &Arc<Shared>,
    visitor: &ProxyVisitor,
    serving: RequestGuard,
    request: Request<Incoming>,
) -> Result<Answer, Answer> {
    let proxy = &visitor.proxy;
    let uri = request.uri();
    if uri.authority().is_none() {
        return Err(refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "this port is a proxy: it serves CONNECT HOST:PORT, and requests for http://HOST/...; \
             use it as curl --proxy does",
        ));
    }
    let address = Address::absolute(&proxy.agent, uri);
    let address = address.map_err(|(status, why)| refuse(status, why))?;
    let peer = serving.visitor().peer_addr();
    let user = login(shared, proxy, peer, &request).await?;
    let (entrypoint, user) = (entrypoint(proxy), user.as_deref());
    let held = Arc::clone(&visitor.permit);
    let response = exchange(shared, entrypoint, user, serving, &address, request, held).await;
    response.map_err(|(status, why)| {
        let Address { agent, target, .. } = &address;
        tracing::debug!(visitor = %peer, user, agent, %target, %status, why, "request failed");
        refuse(status, &why)
    })
}

const fn entrypoint(proxy: &ProxyPort) -> Entrypoint<'_> {
    Entrypoint::Port {
        kind: "connect",
        listen: &proxy.listen,
    }
}

/// Joins the visitor and its stream after the response.
async fn carry(shared: &Shared, upgrade: OnUpgrade, stream: Stream) {
    let watch = stream.watch();
    let upgraded = tokio::select! {
        biased;
        _ = watch.ended() => return,
        upgraded = within(shared.config.header_timeout, upgrade) => upgraded,
    };
    let Some((socket, early)) = upgraded.and_then(Result::ok).and_then(take_socket) else {
        stream.watch().reset(Reason::Cancelled);
        return;
    };
    let (peer, owner) = (socket.peer_addr(), stream.owner());
    let ending = splice_after(early, socket, stream, shared.config.splice).await;
    tracing::debug!(visitor = %peer, stream = owner.stream, %ending, "visitor released");
}

fn take_socket(upgraded: Upgraded) -> Option<(Socket, Bytes)> {
    let parts = upgraded.downcast::<TokioIo<VisitorIo>>().ok()?;
    match parts.io.into_inner().into_transport() {
        Transport::Plain(socket) => Some((socket, parts.read_buf)),
        // These ports have no TLS.
        Transport::Tls(_) => None,
    }
}

/// Reads the target of CONNECT. `Host` is ignored: the request target is what is dialed.
fn connect_target<B>(request: &Request<B>) -> Result<Target, HttpFailure> {
    let target = request.uri().authority();
    let target = target.and_then(|target| Target::tcp(target.as_str(), None).ok());
    match target {
        Some(_) if has_content(request.headers()) => {
            Err((StatusCode::BAD_REQUEST, "CONNECT has no content".to_owned()))
        }
        Some(target) => Ok(target),
        None => Err((
            StatusCode::BAD_REQUEST,
            "write CONNECT HOST:PORT, an IPv6 address in brackets".to_owned(),
        )),
    }
}

/// Whether a request announces content. Some clients send `Content-Length: 0` with every request.
fn has_content(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers
            .get_all(header::CONTENT_LENGTH)
            .iter()
            .any(|length| length != "0")
}

/// Returns the user who sends the request, where the port needs a login.
async fn login<B>(
    shared: &Shared,
    proxy: &ProxyPort,
    peer: PeerAddr,
    request: &Request<B>,
) -> Result<Option<String>, Answer> {
    if !proxy.login {
        return Ok(None);
    }
    let sent = Sent::read(request.headers(), &header::PROXY_AUTHORIZATION);
    let presented = sent.as_ref().and_then(Sent::presented);
    let login = shared.log_in(LoginPort::Connect, peer, presented).await;
    login.map(Some).map_err(|refused: LoginRefused| {
        let status = refused.status(StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        let mut answer = refuse(status, &refused.to_string());
        refused.add_retry_after(answer.headers_mut());
        answer
    })
}

fn refuse(status: StatusCode, why: &str) -> Answer {
    let mut response = plain_text(status, why);
    let more = match status {
        StatusCode::METHOD_NOT_ALLOWED => Some((header::ALLOW, "CONNECT")),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Some((header::PROXY_AUTHENTICATE, "Basic realm=\"tunnel\""))
        }
        _ => None,
    };
    if let Some((name, value)) = more {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}
