//! A connection of the HTTP front: which stream it serves, and what the end of its input means.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::io::socket::{Mark, NOBODY, Owner, PeerAddr, Role};
use crate::io::tls::Transport;
use crate::server::config::Config;

/// The state that the requests of one connection share. It does not keep the connection open.
#[derive(Debug)]
pub(crate) struct Visitor {
    mark: Mark,
    peer: PeerAddr,
    serving: AtomicBool,
    /// The end of the input ends the request that is being served.
    ends_with_input: AtomicBool,
    /// A head has not arrived in time.
    head_is_late: AtomicBool,
    /// The visitor may still be sending the body of a request that was answered.
    is_sending: AtomicBool,
    /// The response to a request is not yet written.
    answering: AtomicBool,
    abort: CancellationToken,
    io: Mutex<Option<Waker>>,
}

impl Visitor {
    /// Returns the address of the visitor.
    pub(crate) const fn peer_addr(&self) -> PeerAddr {
        self.peer
    }

    /// Whether the connection ended because a head did not arrive in time.
    pub(crate) fn head_is_late(&self) -> bool {
        self.head_is_late.load(Ordering::Relaxed)
    }

    /// Begins a request. It ends when the guard is dropped.
    pub(crate) fn begin_request(self: &Arc<Self>, has_body: bool) -> RequestGuard {
        self.is_sending.store(has_body, Ordering::Relaxed);
        self.answering.store(true, Ordering::Relaxed);
        self.ends_with_input.store(false, Ordering::Relaxed);
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

    /// Has the end of the input end the request that is being served.
    pub(crate) fn ends_with_input(&self) {
        self.ends_with_input.store(true, Ordering::Release);
        self.wake();
    }

    /// Takes note that the whole request was read.
    pub(crate) fn request_read(&self) {
        self.is_sending.store(false, Ordering::Relaxed);
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

    /// Registers the connection's task, to be woken when the request has ended.
    fn register(&self, cx: &Context<'_>) {
        let mut io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *io {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *io = Some(cx.waker().clone()),
        }
    }

    /// Ends a request.
    fn request_ended(&self) {
        self.pooled();
        self.serving.store(false, Ordering::Release);
        self.wake();
    }

    /// Wakes the connection's task, if it waits for the end of the request.
    fn wake(&self) {
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
    header_timeout: Option<Duration>,
    keep_alive_timeout: Option<Duration>,
    /// What the connection waits for, unless a request is being served.
    waiting: Option<Waiting>,
    finished: Option<Pin<Box<Sleep>>>,
    own: Option<OwnResponse>,
    draining: Option<Draining>,
}

/// A connection that waits for a request.
struct Waiting {
    /// The first byte of its head has arrived, or is due.
    in_head: bool,
    /// When it has waited for too long.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Waiting {
    fn new(in_head: bool, limit: Option<Duration>) -> Self {
        Self {
            in_head,
            timer: limit.map(|limit| Box::pin(sleep(limit))),
        }
    }
}

/// An answer to a request that hyper cannot read.
struct OwnResponse {
    rest: Bytes,
}

impl OwnResponse {
    /// Makes it of hyper's answer, which has no body.
    fn after(head: &[u8]) -> Option<Self> {
        let head = std::str::from_utf8(head).ok()?;
        let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?;
        let why = match status {
            "414" => "the address in the request is too long",
            "431" => "the head of the request is too long, or has too many lines",
            _ => "the request is malformed",
        };
        let (before, after) = head.split_once("content-length: 0\r\n")?;
        let body = format!("watertight: {why}\n");
        let length = body.len();
        let rest = format!(
            "{before}server: watertight\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {length}\r\n{after}{body}"
        );
        Some(Self { rest: rest.into() })
    }
}

/// The end of a connection whose visitor may still be sending. Closing a socket with unread bytes
/// resets it, and the reset can overtake the response.
struct Draining {
    silent: Pin<Box<Sleep>>,
    deadline: Pin<Box<Sleep>>,
}

/// How long a visitor that still sends may go on after the response.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How many reads it may have before other tasks have their turn.
const DRAIN_READS: usize = 16;

/// How long it may be silent.
const DRAIN_SILENCE: Duration = Duration::from_secs(2);

impl VisitorIo {
    /// Wraps a connection. It belongs to the pool until a request begins.
    pub(crate) fn new(transport: Transport, config: &Config) -> (Self, Arc<Visitor>) {
        let visitor = Arc::new(Visitor {
            mark: transport.socket().mark(),
            peer: transport.socket().peer_addr(),
            serving: AtomicBool::new(false),
            ends_with_input: AtomicBool::new(false),
            head_is_late: AtomicBool::new(false),
            is_sending: AtomicBool::new(false),
            answering: AtomicBool::new(false),
            abort: CancellationToken::new(),
            io: Mutex::default(),
        });
        visitor.request_ended();
        let io = Self {
            transport,
            visitor: Arc::clone(&visitor),
            linger: config.visitor_linger,
            header_timeout: config.header_timeout,
            keep_alive_timeout: config.keep_alive_timeout,
            waiting: Some(Waiting::new(true, config.header_timeout)),
            finished: None,
            own: None,
            draining: None,
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
        self.visitor.register(cx);
        if !self.visitor.serving.load(Ordering::Acquire)
            || self.visitor.ends_with_input.load(Ordering::Acquire)
        {
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
        if self.visitor.serving.load(Ordering::Acquire) {
            self.waiting = None;
        } else if self.waiting.is_none() {
            self.waiting = Some(Waiting::new(false, self.keep_alive_timeout));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.transport).poll_read(cx, buf);
        if read.is_pending() {
            return self.poll_waiting(cx);
        }
        ready!(read)?;
        if buf.filled().len() == before && buf.remaining() > 0 {
            return self.poll_finished(cx);
        }
        if self
            .waiting
            .as_ref()
            .is_some_and(|waiting| !waiting.in_head)
        {
            self.waiting = Some(Waiting::new(true, self.header_timeout));
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
        if let Some(written) = self.poll_own(cx, data, data.len()) {
            return written;
        }
        let written = ready!(Pin::new(&mut self.transport).poll_write(cx, data))?;
        self.moved();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = data.iter().map(|piece| piece.len()).sum();
        let first = data.first().map_or(&[][..], |piece| piece);
        if let Some(written) = self.poll_own(cx, first, length) {
            return written;
        }
        let written = ready!(Pin::new(&mut self.transport).poll_write_vectored(cx, data))?;
        self.moved();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper has written everything. If no request is being served, the next bytes are the
        // answer to the next request, or hyper's own answer to what is none.
        if !self.visitor.serving.load(Ordering::Acquire) {
            self.visitor.answering.store(false, Ordering::Relaxed);
        }
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.transport).poll_shutdown(cx))?;
        if !self.visitor.is_sending.load(Ordering::Relaxed) || self.finished.is_some() {
            return Poll::Ready(Ok(()));
        }
        self.poll_drained(cx).map(Ok)
    }
}

impl VisitorIo {
    /// Waits for a request. A connection that is idle for too long has ended.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(waiting) = &mut self.waiting else {
            // The end of the request begins the wait for the next one.
            self.visitor.register(cx);
            if self.visitor.serving.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        let Some(timer) = &mut waiting.timer else {
            return Poll::Pending;
        };
        ready!(timer.as_mut().poll(cx));
        if waiting.in_head {
            self.visitor.head_is_late.store(true, Ordering::Relaxed);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Ready(Ok(()))
    }

    /// Writes a body with hyper's own answer to a request that it cannot read. `head` begins with
    /// it, and `length` bytes are to be written. Returns `None` if they are no such answer.
    fn poll_own(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        length: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        if self.visitor.answering.load(Ordering::Relaxed) {
            return None;
        }
        let own = match &mut self.own {
            Some(own) => own,
            None => self.own.insert(OwnResponse::after(head)?),
        };
        while !own.rest.is_empty() {
            match Pin::new(&mut self.transport).poll_write(cx, &own.rest) {
                Poll::Ready(Ok(written)) => own.rest.advance(written.min(own.rest.len())),
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        self.own = None;
        self.visitor.answering.store(true, Ordering::Relaxed);
        self.visitor.is_sending.store(true, Ordering::Relaxed);
        Some(Poll::Ready(Ok(length)))
    }

    /// Reads and drops what the visitor still sends.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let draining = self.draining.get_or_insert_with(|| Draining {
            silent: Box::pin(sleep(DRAIN_SILENCE)),
            deadline: Box::pin(sleep(DRAIN_TIMEOUT)),
        });
        if draining.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut space = [MaybeUninit::uninit(); 8 * 1024];
        for _ in 0..DRAIN_READS {
            let mut buffer = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.transport).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {
                    draining.silent = Box::pin(sleep(DRAIN_SILENCE));
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return draining.silent.as_mut().poll(cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Restarts the timer after a write.
    fn moved(&mut self) {
        if self.finished.is_some() {
            self.finished = Some(Box::pin(sleep(self.linger)));
        }
    }
}
