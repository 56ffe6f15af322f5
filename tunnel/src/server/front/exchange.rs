//! One request of the HTTP front and the stream that serves it.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::Builder;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tunnel_proto::mux::{By, Ending, OpenError, Reason};

use crate::relay::splice::FLUSH_GRACE;
use crate::server::config::Config;
use crate::server::front::FrontBody;
use crate::server::front::request::{Address, VIA, rewrite, strip_hop_by_hop};
use crate::server::front::switch::{Switched, Wanted};
use crate::server::front::upload::{Progress, Stalled, TargetIo};
use crate::server::open::{Entrypoint, HttpFailure, OpenRefused, OpenRequest};
use crate::server::shared::{Shared, within};
use crate::server::visitor::{RequestGuard, Visitor};
use crate::session::Watch;

/// Opens a stream for a request, passes the request on and returns the response. If the connection
/// changes its protocol, a task joins both ends from then on, and keeps `held` as long.
pub(super) async fn exchange(
    shared: &Arc<Shared>,
    entrypoint: Entrypoint<'_>,
    user: Option<&str>,
    serving: RequestGuard,
    address: &Address,
    mut request: Request<Incoming>,
    held: impl Send + 'static,
) -> Result<Response<FrontBody>, HttpFailure> {
    let Address { agent, target, .. } = address;
    let visitor_version = request.version();
    let wanted = Wanted::take(&mut request);
    let protocols = wanted.as_ref().map(|wanted| &wanted.protocols);
    let (request, progress) = rewrite(shared.clock, request, address, protocols)?;
    let open_request = OpenRequest {
        entrypoint,
        user,
        agent,
        target,
    };
    let refused = |refused: OpenRefused| refused.failure(agent, target);
    let visitor = Arc::clone(serving.visitor());
    let serves = |owner| visitor.serves(owner, &format!("{agent}/{target}"));
    let opened = shared.open_stream(open_request, serves).await;
    let (route, stream) = opened.map_err(refused)?;
    let cancel = CancellationToken::new();
    let opened = stream.watch();
    let mut exchange = Exchange::new(
        stream.watch(),
        serving,
        cancel.clone(),
        Arc::clone(&progress),
    );
    let target_io = TargetIo::new(stream, Arc::clone(&progress));
    let handshake = http1(&shared.config).handshake(TokioIo::new(target_io));
    let (mut sender, connection) = handshake.await.map_err(|error| {
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
        let carry = carry(connection.with_upgrades(), opened, &visitor);
        cancel.run_until_cancelled_owned(carry).await;
    };
    route.scope().spawn(carry.instrument(span));
    let response = tokio::select! {
        biased;
        response = sender.send_request(request) => response,
        stalled = progress.stalled(shared.config.response_timeout) => return Err(match stalled {
            Stalled::Visitor => (
                StatusCode::REQUEST_TIMEOUT,
                "the rest of the request did not come in time".to_owned(),
            ),
            Stalled::Target => (
                StatusCode::GATEWAY_TIMEOUT,
                format!("{target} gave no response in time"),
            ),
        }),
    };
    match (response, wanted) {
        (Ok(response), wanted) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let wanted = wanted.ok_or_else(|| {
                let why = format!("{target} changes the protocol, and nobody asked it to");
                (StatusCode::BAD_GATEWAY, why)
            })?;
            let (response, on_target) = switching(response);
            let shared = Arc::clone(shared);
            let serve = serve_switched(shared, wanted.on_upgrade, on_target, exchange);
            route.scope().spawn(async move {
                serve.await;
                drop(held);
            });
            Ok(response)
        }
        (Ok(mut response), _) => {
            exchange.closes_at_end = visitor_version == Version::HTTP_10;
            finish_response(&mut response, progress.has_ended());
            Ok(response.map(|body| Either::Left(ExchangeBody::new(body, exchange))))
        }
        (Err(error), _) => Err(match exchange.refusal() {
            Some(reason) => {
                shared.metrics.open_failed(reason.name());
                OpenRefused::from(OpenError::Refused(reason)).failure(agent, target)
            }
            None => (
                StatusCode::BAD_GATEWAY,
                format!("{target} gave no valid response: {error}"),
            ),
        }),
    }
}

/// Returns the response with which the connection leaves HTTP, and what the target changes to.
fn switching(mut response: Response<Incoming>) -> (Response<FrontBody>, OnUpgrade) {
    let on_target = hyper::upgrade::on(&mut response);
    let protocol = response.headers().get(header::UPGRADE).cloned();
    finish_response(&mut response, true);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
    }
    (response.map(|_| Either::Right(Full::default())), on_target)
}

/// Joins both ends of a connection that leaves HTTP.
async fn serve_switched(
    shared: Arc<Shared>,
    on_visitor: OnUpgrade,
    on_target: OnUpgrade,
    mut exchange: Exchange,
) {
    let both = async { tokio::try_join!(on_visitor, on_target) };
    let upgraded = tokio::select! {
        biased;
        _ = exchange.watch.ended() => return,
        upgraded = within(shared.config.header_timeout, both) => upgraded,
    };
    // hyper has nothing left to do with the stream.
    exchange.cancel.cancel();
    let upgraded = upgraded.and_then(Result::ok);
    let switched = upgraded.and_then(|(visitor, target)| Switched::new(visitor, target));
    let Some(switched) = switched else { return };
    let linger = shared.config.splice.linger;
    match switched.join(exchange.serving.visitor(), linger).await {
        Ok(()) => exchange.reason = Reason::Done,
        Err(error) => tracing::debug!(%error, "a connection that left HTTP broke"),
    }
}

/// Returns how HTTP/1.1 is spoken to targets.
fn http1(config: &Config) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_buf_size(config.head_max)
        .max_headers(config.header_lines_max)
        .preserve_header_case(true)
        // Targets are older than the RFCs now and then. They are trusted with their own responses.
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    builder
}

/// Makes the response's head that the visitor gets.
fn finish_response(response: &mut Response<Incoming>, request_has_ended: bool) {
    let headers = response.headers_mut();
    strip_hop_by_hop(headers);
    headers.append(header::VIA, HeaderValue::from_static(VIA));
    if !request_has_ended {
        // The rest of the request may never be read.
        let close = HeaderValue::from_static("close");
        headers.insert(header::CONNECTION, close);
    }
    *response.version_mut() = Version::HTTP_11;
}

/// A request that is being served. Dropping it ends the request in this order: it cancels the task
/// that carries the bytes, resets the stream (which also sends its END), and returns the visitor's
/// connection to the pool.
struct Exchange {
    watch: Watch,
    cancel: CancellationToken,
    reason: Reason,
    /// Only the end of the connection tells the visitor where the response ends.
    closes_at_end: bool,
    progress: Arc<Progress>,
    serving: RequestGuard,
}

impl Exchange {
    const fn new(
        watch: Watch,
        serving: RequestGuard,
        cancel: CancellationToken,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            watch,
            cancel,
            reason: Reason::Cancelled,
            closes_at_end: false,
            progress,
            serving,
        }
    }

    /// Returns why the agent could not connect to the target, if its refusal came after the open.
    fn refusal(&self) -> Option<Reason> {
        match self.watch.ending() {
            Some(Ending::Reset(
                reason @ (Reason::Refused
                | Reason::Unreachable
                | Reason::Denied
                | Reason::Unresolved
                | Reason::Busy
                | Reason::Draining),
                By::Peer,
            )) => Some(reason),
            Some(Ending::Reset(..) | Ending::Finished) | None => None,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.progress.has_ended() {
            self.serving.visitor().request_read();
        }
        // The task comes first: otherwise it takes the end of the stream for a broken exchange.
        self.cancel.cancel();
        self.watch.reset(self.reason);
    }
}

/// Drives the connection to the target and watches its stream. hyper alone would not see the end of
/// the stream while the visitor does not read.
async fn carry(
    connection: impl Future<Output = hyper::Result<()>>,
    stream: Watch,
    visitor: &Visitor,
) {
    let mut connection = pin!(connection.fuse());
    let mut complete = false;
    loop {
        tokio::select! {
            biased;
            _ = stream.ended() => break,
            result = connection.as_mut(), if !connection.is_terminated() => complete = is_whole(result),
        }
    }
    // Bytes that arrived before the end still go to the visitor, if it reads them in time.
    let flush = async {
        if !connection.is_terminated() {
            complete = is_whole(connection.as_mut().await);
        }
        if !complete {
            std::future::pending().await
        }
    };
    match timeout(FLUSH_GRACE, flush).await {
        Ok(()) => visitor.pooled(),
        Err(_) => visitor.abort(),
    }
}

fn is_whole(result: hyper::Result<()>) -> bool {
    if let Err(error) = &result {
        tracing::debug!(%error, "the connection to the target broke");
    }
    result.is_ok()
}

/// A response's body. It keeps its exchange alive.
pub(crate) struct ExchangeBody {
    body: Incoming,
    exchange: Exchange,
    /// Why the response is cut off.
    cut: Option<hyper::Error>,
}

impl ExchangeBody {
    const fn new(body: Incoming, exchange: Exchange) -> Self {
        Self {
            body,
            exchange,
            cut: None,
        }
    }
}

impl Drop for ExchangeBody {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.exchange.reason = Reason::Done;
        }
    }
}

impl Body for ExchangeBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(error) = self.cut.take() {
            if self.exchange.closes_at_end {
                self.exchange.serving.visitor().abort();
            }
            return Poll::Ready(Some(Err(error)));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                // hyper drops what it has not yet written when a body fails, and the head may be
                // among it. While a body is pending, it writes.
                self.cut = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.exchange.reason = Reason::Done;
                Poll::Ready(None)
            }
            frame => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
