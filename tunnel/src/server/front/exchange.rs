//! One request of the HTTP front and the stream that serves it.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tunnel_proto::mux::{By, Ending, Reason};

use crate::relay::splice::FLUSH_GRACE;
use crate::server::visitor::{Serving, Visitor};
use crate::session::Watch;

/// A request that is being served. When it goes, the request is over: the task that carries it is told to stop, the
/// stream is reset (its END is told in that call), and the visitor's connection returns to its pool, in this order.
pub(crate) struct Exchange {
    watch: Watch,
    cancel: CancellationToken,
    reason: Reason,
    _serving: Serving,
}

impl Exchange {
    pub(crate) const fn new(watch: Watch, serving: Serving, cancel: CancellationToken) -> Self {
        Self {
            watch,
            cancel,
            reason: Reason::Cancelled,
            _serving: serving,
        }
    }

    /// Returns why the agent has no connection to the target, where its refusal could only come after the open.
    pub(crate) fn refusal(&self) -> Option<Reason> {
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
        // First the task: it would take the end of the stream for a broken exchange.
        self.cancel.cancel();
        self.watch.reset(self.reason);
    }
}

/// Drives the connection to the target, and watches its stream for as long as the exchange lasts: a visitor that does
/// not read keeps hyper from seeing that the stream is over.
pub(crate) async fn carry(
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
    // What arrived before the end is passed on, and a failure is told, as far as the visitor takes it.
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
        Err(_) => visitor.cut(),
    }
}

fn is_whole(result: hyper::Result<()>) -> bool {
    if let Err(error) = &result {
        tracing::debug!(%error, "the exchange with the target broke");
    }
    result.is_ok()
}

/// A response's body, with the exchange that it comes from.
pub(crate) struct ExchangeBody {
    body: Incoming,
    exchange: Exchange,
}

impl ExchangeBody {
    pub(crate) const fn new(body: Incoming, exchange: Exchange) -> Self {
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
