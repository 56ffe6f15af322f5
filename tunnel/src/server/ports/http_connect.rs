//! HTTP CONNECT ports: visitors name their targets (RFC 9110, section 9.3.6).

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::OwnedSemaphorePermit;
use tunnel_proto::mux::Reason;
use tunnel_proto::target::Target;

use crate::http::authorization::Sent;
use crate::io::socket::{Mark, NOBODY, PeerAddr, Role, Socket};
use crate::login::{LoginPort, LoginRefused};
use crate::relay::splice::splice_after;
use crate::server::config::port::ProxyPort;
use crate::server::front::plain_text_of;
use crate::server::open::{Entrypoint, HttpFailure, OpenRefused, OpenRequest};
use crate::server::shared::{Shared, within};
use crate::session::Stream;

/// A visitor's connection until its stream has begun.
struct ProxyVisitor {
    shared: Arc<Shared>,
    proxy: ProxyPort,
    mark: Mark,
    peer: PeerAddr,
    /// Counts the connection against the limit, until the task that serves it ends.
    permit: Arc<OwnedSemaphorePermit>,
}

/// Serves a visitor until its stream has begun. The session's scope owns the stream's task.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    proxy: ProxyPort,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    let peer = socket.peer_addr();
    let hung_up = socket.hung_up();
    let visitor = Arc::new(ProxyVisitor {
        shared: Arc::clone(&shared),
        proxy,
        mark: socket.mark(),
        peer,
        permit: Arc::new(permit),
    });
    visitor.pooled();
    let asked_once = AtomicBool::new(false);
    let service = service_fn(|request| {
        asked_once.store(true, Ordering::Relaxed);
        let visitor = Arc::clone(&visitor);
        async move {
            let response = respond(&visitor, request).await;
            Ok::<_, Infallible>(response.unwrap_or_else(|refusal| refusal))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.config.header_timeout)
        .max_buf_size(shared.config.head_max)
        .max_headers(shared.config.header_lines_max)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let (mut connection, mut hung_up) = (pin!(connection), pin!(hung_up));
    let mut asked = false;
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    // The timeout of a later head only ends an idle connection.
                    let is_late = error.is_timeout() && !asked_once.load(Ordering::Relaxed);
                    shared.count_head(&error, is_late);
                    tracing::debug!(visitor = %peer, %error, "the visitor's connection broke");
                }
                return;
            }
            () = hung_up.as_mut() => return,
            () = shared.draining.cancelled(), if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

impl ProxyVisitor {
    /// Returns the connection to the pool: it serves no stream.
    fn pooled(&self) {
        let label = format!("visitor {}", self.peer);
        self.mark.bind(Role::Pool, NOBODY, &label);
    }
}

/// A stream that is being opened. If it is dropped before the stream has begun, the visitor returns
/// to the pool.
struct OpeningGuard<'a>(Option<&'a ProxyVisitor>);

impl Drop for OpeningGuard<'_> {
    fn drop(&mut self) {
        if let Some(visitor) = self.0 {
            visitor.pooled();
        }
    }
}

type Answer = Response<Full<Bytes>>;

async fn respond(visitor: &ProxyVisitor, mut request: Request<Incoming>) -> Result<Answer, Answer> {
    let ProxyVisitor { shared, proxy, .. } = visitor;
    let target = asked_for(&request).map_err(|(status, why)| refuse(status, &why))?;
    let login = login(visitor, &request).await;
    let user = login.map_err(|refused| {
        let status = refused.status(StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        let mut answer = refuse(status, &refused.to_string());
        refused.add_retry_after(answer.headers_mut());
        answer
    })?;
    let open_request = OpenRequest {
        entrypoint: Entrypoint::Port {
            kind: "connect",
            listen: &proxy.listen,
        },
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
    let label = format!("visitor {} -> {}/{target}", visitor.peer, proxy.agent);
    let mut begins = OpeningGuard(Some(visitor));
    let bind = |owner| visitor.mark.bind(Role::Stream, owner, &label);
    let opened = shared.open_stream(open_request, bind).await;
    let (route, stream) = opened.map_err(failed)?;
    begins.0 = None;
    let upgrade = hyper::upgrade::on(&mut request);
    let (shared, permit) = (Arc::clone(shared), Arc::clone(&visitor.permit));
    route.scope().spawn(async move {
        let _permit = permit;
        carry(&shared, upgrade, stream).await;
    });
    Ok(Response::default())
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
    let parts = upgraded.downcast::<TokioIo<Socket>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

/// Reads the target. `Host` is ignored: the request target is what is dialed.
fn asked_for<B>(request: &Request<B>) -> Result<Target, HttpFailure> {
    if request.method() != Method::CONNECT {
        return Err((
            StatusCode::METHOD_NOT_ALLOWED,
            "this port serves CONNECT HOST:PORT only; use it as a proxy, as curl --proxytunnel does".to_owned(),
        ));
    }
    let headers = request.headers();
    let target = request.uri().authority();
    let target = target.and_then(|target| Target::tcp(target.as_str(), None).ok());
    match target {
        Some(_)
            if headers.contains_key(header::CONTENT_LENGTH)
                || headers.contains_key(header::TRANSFER_ENCODING) =>
        {
            Err((StatusCode::BAD_REQUEST, "CONNECT has no content".to_owned()))
        }
        Some(target) => Ok(target),
        None => Err((
            StatusCode::BAD_REQUEST,
            "write CONNECT HOST:PORT, an IPv6 address in brackets".to_owned(),
        )),
    }
}

/// Returns the user who sends the request, where the port needs a login.
async fn login<B>(
    visitor: &ProxyVisitor,
    request: &Request<B>,
) -> Result<Option<String>, LoginRefused> {
    if !visitor.proxy.login {
        return Ok(None);
    }
    let sent = Sent::read(request.headers(), &header::PROXY_AUTHORIZATION);
    let presented = sent.as_ref().and_then(Sent::presented);
    let login = visitor
        .shared
        .log_in(LoginPort::Connect, visitor.peer, presented);
    login.await.map(Some)
}

fn refuse(status: StatusCode, why: &str) -> Answer {
    let mut response = plain_text_of(status, why);
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
