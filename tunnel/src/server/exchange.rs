//! One request of the HTTP front and the stream that serves it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::sync::CancellationToken;

use super::visitor::Serving;
use crate::mux::Reason;
use crate::session::Watch;

/// A request that is being served. When it goes, the request is over: the stream is reset (its END is told in that call), the
/// task that carries the request is told to stop, and the visitor's connection returns to its pool, in this order.
pub(super) struct Exchange {
    watch: Watch,
    carrier: CancellationToken,
    reason: Reason,
    _serving: Serving,
}

impl Exchange {
    pub(super) const fn new(watch: Watch, serving: Serving, carrier: CancellationToken) -> Self {
        Self {
            watch,
            carrier,
            reason: Reason::Cancelled,
            _serving: serving,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.watch.reset(self.reason);
        self.carrier.cancel();
    }
}

/// A response's body, with the exchange that it comes from.
pub(super) struct ExchangeBody {
    body: Incoming,
    exchange: Exchange,
}

impl ExchangeBody {
    pub(super) const fn new(body: Incoming, exchange: Exchange) -> Self {
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
