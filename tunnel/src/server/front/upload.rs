//! The body of a visitor's request, on its way to the target.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, sleep_until};
use tunnel_proto::Time;

use crate::io::clock::Clock;
use crate::session::Stream;

/// How long a target may take to answer `Expect: 100-continue`. A target that does not know it
/// waits for the body, and clients send the body after about this time.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The visitor has to send more of the body.
    Visitor,
    /// The target has to take what was sent.
    Target,
    /// The request has ended. The target has to respond.
    Response,
}

/// How far a request is.
#[derive(Debug)]
pub(super) struct Progress {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    turn: Turn,
    moved: Time,
    /// The body must wait for the target's `100 Continue`.
    held: bool,
    waker: Option<Waker>,
}

/// Who has let a request wait for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stalled {
    Visitor,
    Target,
}

impl Progress {
    fn new(clock: Clock, turn: Turn, held: bool) -> Arc<Self> {
        let state = State {
            turn,
            moved: clock.now(),
            held,
            waker: None,
        };
        Arc::new(Self {
            clock,
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self, turn: Option<Turn>) {
        let mut state = self.lock();
        state.moved = self.clock.now();
        state.turn = turn.unwrap_or(state.turn);
    }

    /// Lets the body go: the target wants it.
    pub(super) fn go_on(&self) {
        let mut state = self.lock();
        state.held = false;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Whether the whole request was sent.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().turn == Turn::Response
    }

    /// Returns when nothing has moved for `limit`: neither the request, nor, after its end, the
    /// response.
    pub(super) async fn stalled(&self, limit: Option<Duration>) -> Stalled {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let due = self.lock().moved.saturating_add(limit);
            if self.clock.now() >= due {
                break;
            }
            sleep_until(self.clock.instant(due)).await;
        }
        match self.lock().turn {
            Turn::Visitor => Stalled::Visitor,
            Turn::Target | Turn::Response => Stalled::Target,
        }
    }
}

/// The body of a request.
pub(super) struct Upload {
    body: Incoming,
    progress: Arc<Progress>,
    /// When a body that is held goes on without an answer.
    fallback: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    /// Wraps a body. If `expects`, the target has to ask for it.
    pub(super) fn new(clock: Clock, body: Incoming, expects: bool) -> (Self, Arc<Progress>) {
        let turn = if body.is_end_stream() {
            Turn::Response
        } else {
            Turn::Target
        };
        let progress = Progress::new(clock, turn, expects);
        let upload = Self {
            body,
            progress: Arc::clone(&progress),
            fallback: expects.then(|| Box::pin(sleep(CONTINUE_TIMEOUT))),
        };
        (upload, progress)
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(fallback) = &mut self.fallback else {
            return Poll::Ready(());
        };
        {
            let mut state = self.progress.lock();
            if state.held {
                state.waker = Some(cx.waker().clone());
                if fallback.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                state.held = false;
            }
        }
        self.fallback = None;
        Poll::Ready(())
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        std::task::ready!(self.poll_held(cx));
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Pending => self.progress.lock().turn = Turn::Visitor,
            Poll::Ready(None) => self.progress.moved(Some(Turn::Response)),
            Poll::Ready(Some(_)) => {
                let turn = if self.body.is_end_stream() {
                    Turn::Response
                } else {
                    Turn::Target
                };
                self.progress.moved(Some(turn));
            }
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

/// The stream to a target. A target may respond and hang up before it has taken the whole request.
/// So an error of a write is kept back: the response, or the error of a read, comes instead.
pub(super) struct TargetIo {
    stream: Stream,
    progress: Arc<Progress>,
    broken: bool,
}

impl TargetIo {
    pub(super) const fn new(stream: Stream, progress: Arc<Progress>) -> Self {
        Self {
            stream,
            progress,
            broken: false,
        }
    }

    /// Returns the stream, for an upgrade.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    fn poll_send<T>(
        &mut self,
        cx: &mut Context<'_>,
        send: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.broken {
            return Poll::Pending;
        }
        match send(Pin::new(&mut self.stream), cx) {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "the target takes no more of the request");
                self.broken = true;
                Poll::Pending
            }
            sent => sent,
        }
    }
}

impl AsyncRead for TargetIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TargetIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_send(cx, |stream, cx| stream.poll_write(cx, data));
        if written.is_ready() {
            self.progress.moved(None);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx, AsyncWrite::poll_shutdown)
    }
}
