//! One request of the HTTP front and the stream that serves it.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use http_body_util::Either;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tunnel_proto::mux::{By, Ending, OpenError, Reason};

use crate::relay::splice::FLUSH_GRACE;
use crate::server::config::HttpPort;
use crate::server::front::FrontBody;
use crate::server::front::request::{Address, rewrite, strip_hop_by_hop};
use crate::server::open::{Entrypoint, HttpFailure, OpenRefused, OpenRequest};
use crate::server::shared::Shared;
use crate::server::visitor::{RequestGuard, Visitor};
use crate::session::Watch;

/// Opens a stream for a request, passes the request on and returns the response.
pub(super) async fn exchange(
    shared: &Arc<Shared>,
    port: &HttpPort,
    user: Option<&str>,
    serving: RequestGuard,
    address: &Address,
    request: Request<Incoming>,
) -> Result<Response<FrontBody>, HttpFailure> {
    let Address { agent, target, .. } = address;
    let request = rewrite(request, address)?;
    let open_request = OpenRequest {
        entrypoint: Entrypoint::Port {
            kind: "http",
            listen: &port.listen,
        },
        user,
        agent,
        target,
    };
    let refused = |refused: OpenRefused| refused.failure(agent, target);
    let (route, opening) = shared.open(open_request).map_err(refused)?;
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
    let response = timeout(shared.config.response_timeout, sender.send_request(request));
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

/// A request that is being served. Dropping it ends the request in this order: it cancels the task
/// that carries the bytes, resets the stream (which also sends its END), and returns the visitor's
/// connection to the pool.
struct Exchange {
    watch: Watch,
    cancel: CancellationToken,
    reason: Reason,
    _serving: RequestGuard,
}

impl Exchange {
    const fn new(watch: Watch, serving: RequestGuard, cancel: CancellationToken) -> Self {
        Self {
            watch,
            cancel,
            reason: Reason::Cancelled,
            _serving: serving,
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
}

impl ExchangeBody {
    const fn new(body: Incoming, exchange: Exchange) -> Self {
        Self { body, exchange }
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
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) {
            self.exchange.reason = Reason::Done;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
