//! A connection of the HTTP front: whom it serves now, and what its end means.

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

/// What the requests of one connection know of it. It does not keep the connection open.
#[derive(Debug)]
pub(crate) struct Visitor {
    mark: Mark,
    peer: PeerAddr,
    serving: AtomicBool,
    cut: CancellationToken,
    io: Mutex<Option<Waker>>,
}

impl Visitor {
    /// Returns who the visitor is.
    pub(crate) const fn peer_addr(&self) -> PeerAddr {
        self.peer
    }

    /// A request has begun. Its end is the end of what is returned.
    pub(crate) fn begins(self: &Arc<Self>) -> Serving {
        self.serving.store(true, Ordering::Release);
        Serving {
            visitor: Arc::clone(self),
        }
    }

    /// The connection serves a stream from now on.
    pub(crate) fn serves(&self, owner: Owner, destination: &str) {
        let label = format!("visitor {} -> {destination}", self.peer);
        self.mark.bind(Role::Stream, owner, &label);
    }

    /// The connection serves no stream: what is left of a response is on its way.
    pub(crate) fn pooled(&self) {
        self.mark
            .bind(Role::Pool, NOBODY, &format!("visitor {}", self.peer));
    }

    /// The response cannot be completed: the connection must end, however little the visitor reads.
    pub(crate) fn cut(&self) {
        self.mark.reset_on_release();
        self.cut.cancel();
    }

    /// Returns the token that is cancelled when the connection must end.
    pub(crate) const fn must_end(&self) -> &CancellationToken {
        &self.cut
    }

    /// The connection is between requests.
    fn rests(&self) {
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

/// A request that is being served. When it goes, the connection returns to its pool.
pub(crate) struct Serving {
    visitor: Arc<Visitor>,
}

impl Serving {
    /// Returns the connection that is served.
    pub(crate) const fn visitor(&self) -> &Arc<Visitor> {
        &self.visitor
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.visitor.rests();
    }
}

/// The connection as hyper sees it. hyper takes the end of the visitor's direction for the end of the visitor; this holds the
/// end back for a moment while a response is due, since it may be one half of it only.
pub(crate) struct VisitorIo {
    transport: Transport,
    visitor: Arc<Visitor>,
    linger: Duration,
    finished: Option<Pin<Box<Sleep>>>,
}

impl VisitorIo {
    /// Takes a connection over. It belongs to the pool until a request is served.
    pub(crate) fn new(transport: Transport, linger: Duration) -> (Self, Arc<Visitor>) {
        let visitor = Arc::new(Visitor {
            mark: transport.socket().mark(),
            peer: transport.socket().peer_addr(),
            serving: AtomicBool::new(false),
            cut: CancellationToken::new(),
            io: Mutex::default(),
        });
        visitor.rests();
        let io = Self {
            transport,
            visitor: Arc::clone(&visitor),
            linger,
            finished: None,
        };
        (io, visitor)
    }

    /// Gives the transport to whom the connection was upgraded for.
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
    /// A response that goes on is worth waiting for.
    fn moved(&mut self) {
        if self.finished.is_some() {
            self.finished = Some(Box::pin(sleep(self.linger)));
        }
    }
}
