//! A connection of the HTTP front: which stream it serves, and what the end of its input means.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::io::socket::{Mark, NOBODY, Owner, PeerAddr, Role};
use crate::io::tls::Transport;

/// The state that the requests of one connection share. It does not keep the connection open.
#[derive(Debug)]
pub(crate) struct Visitor {
    mark: Mark,
    peer: PeerAddr,
    serving: AtomicBool,
    abort: CancellationToken,
    io: Mutex<Option<Waker>>,
}

impl Visitor {
    /// Returns the address of the visitor.
    pub(crate) const fn peer_addr(&self) -> PeerAddr {
        self.peer
    }

    /// Begins a request. It ends when the guard is dropped.
    pub(crate) fn begin_request(self: &Arc<Self>) -> RequestGuard {
        self.serving.store(true, Ordering::Release);
        RequestGuard {
            visitor: Arc::clone(self),
        }
    }

    /// Binds the connection to the stream that it serves from now on.
    pub(crate) fn serves(&self, owner: Owner, destination: &str) {
        let label = format!("visitor {} -> {destination}", self.peer);
        self.mark.bind(Role::Stream, owner, &label);
    }

    /// Returns the connection to the pool: it serves no stream now. The rest of a response may
    /// still be on its way.
    pub(crate) fn pooled(&self) {
        self.mark
            .bind(Role::Pool, NOBODY, &format!("visitor {}", self.peer));
    }

    /// Resets the connection, because its response cannot be completed.
    pub(crate) fn abort(&self) {
        self.mark.reset_on_release();
        self.abort.cancel();
    }

    /// Returns the token that [`Self::abort`] cancels.
    pub(crate) const fn aborted(&self) -> &CancellationToken {
        &self.abort
    }

    /// Ends a request.
    fn request_ended(&self) {
        self.pooled();
        self.serving.store(false, Ordering::Release);
        let waker = self
            .io
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A request that is being served. Dropping it returns the connection to the pool.
pub(crate) struct RequestGuard {
    visitor: Arc<Visitor>,
}

impl RequestGuard {
    /// Returns the connection of the request.
    pub(crate) const fn visitor(&self) -> &Arc<Visitor> {
        &self.visitor
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.visitor.request_ended();
    }
}

/// The connection as hyper sees it. hyper takes the end of the input for the end of the connection.
/// This type delays that end while a response is due, because the visitor may have closed only one
/// half.
pub(crate) struct VisitorIo {
    transport: Transport,
    visitor: Arc<Visitor>,
    linger: Duration,
    finished: Option<Pin<Box<Sleep>>>,
}

impl VisitorIo {
    /// Wraps a connection. It belongs to the pool until a request begins.
    pub(crate) fn new(transport: Transport, linger: Duration) -> (Self, Arc<Visitor>) {
        let visitor = Arc::new(Visitor {
            mark: transport.socket().mark(),
            peer: transport.socket().peer_addr(),
            serving: AtomicBool::new(false),
            abort: CancellationToken::new(),
            io: Mutex::default(),
        });
        visitor.request_ended();
        let io = Self {
            transport,
            visitor: Arc::clone(&visitor),
            linger,
            finished: None,
        };
        (io, visitor)
    }

    /// Returns the transport, for an upgrade.
    pub(crate) fn into_transport(self) -> Transport {
        self.transport
    }

    fn poll_finished(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let linger = self.linger;
        let timer = self.finished.get_or_insert_with(|| Box::pin(sleep(linger)));
        *self
            .visitor
            .io
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        if !self.visitor.serving.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        timer.as_mut().poll(cx).map(Ok)
    }
}

impl AsyncRead for VisitorIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.finished.is_some() {
            return self.poll_finished(cx);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.transport).poll_read(cx, buf))?;
        if buf.filled().len() == before && buf.remaining() > 0 {
            return self.poll_finished(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for VisitorIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.transport).poll_write(cx, data))?;
        self.moved();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.transport).poll_write_vectored(cx, data))?;
        self.moved();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

impl VisitorIo {
    /// Restarts the timer after a write.
    fn moved(&mut self) {
        if self.finished.is_some() {
            self.finished = Some(Box::pin(sleep(self.linger)));
        }
    }
}
