//! The handles of one stream.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::{fmt, io};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

mod pace;
mod reference;

use tunnel_proto::mux::{By, Ending, OpenError, ReadError, Reason, WriteError};
use tunnel_proto::target::Target;
use tunnel_proto::wire::frame::StreamId;

use crate::io::socket::Owner;
use crate::metrics::Timeout;
use crate::session::Shared;
use crate::session::stream::pace::Pause;
use crate::session::stream::reference::StreamRef;

/// A stream that this side opened and the peer has not answered. Dropping it cancels the open.
pub struct Opening {
    stream: Stream,
}

impl Opening {
    pub(super) const fn new(stream: Stream) -> Self {
        Self { stream }
    }

    /// Returns the owner that both ends bind the stream's sockets to.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.stream.owner()
    }

    /// Returns a handle that watches and resets the stream, and keeps it from being released.
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.stream.watch()
    }

    /// Waits for the answer, at most for
    /// [`Config::open_timeout`](tunnel_proto::mux::native::Config::open_timeout).
    ///
    /// # Errors
    ///
    /// [`OpenError::Refused`] with the peer's reason.
    pub async fn accepted(self) -> Result<Stream, OpenError> {
        let stream_ref = &self.stream.stream_ref;
        let opened = poll_fn(|cx| stream_ref.poll_opened(cx)).await;
        if opened.is_err() && stream_ref.ending() == Some(Ending::Reset(Reason::TimedOut, By::Us)) {
            stream_ref.shared.metrics.timed_out(Timeout::Open);
        }
        opened?;
        Ok(self.stream)
    }
}

/// A stream that the peer opened and waits to have answered. Dropping it refuses the open.
pub struct Incoming {
    stream: Stream,
    target: Bytes,
}

impl Incoming {
    pub(super) const fn new(stream: Stream, target: Bytes) -> Self {
        Self { stream, target }
    }

    /// Returns the target as the peer wrote it.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        &self.target
    }

    /// Returns the owner that both ends bind the stream's sockets to.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.stream.owner()
    }

    /// Counts the stream from here to its end as one to `target`.
    pub fn count(&self, target: &Target) {
        let shared = &self.stream.stream_ref.shared;
        let mut state = shared.lock();
        if state.mux.ending(self.stream.stream_ref.id).is_none()
            && let Some(slot) = state.slots.get_mut(&self.stream.stream_ref.id)
        {
            slot.metrics = Some(shared.metrics.stream_began(target));
        }
    }

    /// Waits until the opener gives up.
    pub async fn ended(&self) -> Ending {
        poll_fn(|cx| self.stream.stream_ref.poll_ended(cx)).await
    }

    /// Accepts the stream: the target is dialed.
    ///
    /// # Errors
    ///
    /// The ending, when the opener gave up in the meantime.
    pub fn accept(self) -> Result<Stream, Ending> {
        let stream_ref = &self.stream.stream_ref;
        let now = stream_ref.shared.clock.now();
        stream_ref.shared.with(|mux, slots| {
            mux.accept(now, stream_ref.id)?;
            if let Some(slot) = slots.get(&stream_ref.id) {
                slot.accepted(now);
            }
            Ok(())
        })?;
        Ok(self.stream)
    }

    /// Refuses the stream.
    pub fn refuse(self, reason: Reason) {
        self.stream.stream_ref.reset(reason);
    }
}

/// A stream that both ends accepted. As `AsyncRead` and `AsyncWrite` it is a connection to the
/// target.
///
/// One that [`Dialer::dial`](crate::Dialer::dial) gives behaves as a TCP connection does:
/// `shutdown` finishes our half behind what was written and the other half goes on; dropped after
/// that, it comes to its end by itself, at most for
/// [`Config::linger_timeout`](tunnel_proto::mux::native::Config::linger_timeout), and bytes that
/// the target sends in the meantime abandon it. Dropped before, it is reset at both ends. In
/// remotedialer's dialect there is no half-close: a finish ends both halves.
///
/// Of any other stream, reading its end does not report delivery, since the reader may still have
/// to pass the bytes on; and what is dropped is reset, finished or not.
pub struct Stream {
    stream_ref: Arc<StreamRef>,
    chunk: Bytes,
    reads: Pause,
    writes: Pause,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = self.owner();
        f.debug_struct("Stream")
            .field("session", &owner.session)
            .field("stream", &owner.stream)
            .finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, id: StreamId) -> Self {
        Self {
            stream_ref: Arc::new(StreamRef {
                shared,
                id,
                is_connection: AtomicBool::new(false),
            }),
            chunk: Bytes::new(),
            reads: None,
            writes: None,
        }
    }

    /// Returns the owner that both ends bind the stream's sockets to.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.stream_ref.owner()
    }

    /// Makes it a connection: see [`Stream`].
    pub(crate) fn into_connection(self) -> Self {
        self.stream_ref.is_connection.store(true, Ordering::Relaxed);
        self
    }

    /// Returns a handle that watches and resets the stream, and keeps it from being released.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch {
            stream_ref: Arc::clone(&self.stream_ref),
        }
    }

    /// Splits the stream into its two halves.
    #[must_use]
    pub fn split(self) -> (SendStream, ReceiveStream) {
        let stream_ref = Arc::clone(&self.stream_ref);
        let receive = ReceiveStream {
            stream_ref: self.stream_ref,
            pause: None,
        };
        (
            SendStream {
                stream_ref,
                pause: None,
            },
            receive,
        )
    }
}

/// Watches a stream.
pub struct Watch {
    stream_ref: Arc<StreamRef>,
}

impl Watch {
    /// Returns the owner that both ends bind the stream's sockets to.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.stream_ref.owner()
    }

    /// Waits until the stream is over by protocol. One task may wait.
    pub async fn ended(&self) -> Ending {
        poll_fn(|cx| self.stream_ref.poll_ended(cx)).await
    }

    /// Whether the session has no other stream.
    pub(crate) fn is_alone(&self) -> bool {
        self.stream_ref.shared.lock().mux.streams() <= 1
    }

    /// Returns how the stream ended, if it has.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.stream_ref.ending()
    }

    /// Counts the stream as one that a timeout resets.
    pub(crate) fn timed_out(&self, timeout: Timeout) {
        self.stream_ref.shared.metrics.timed_out(timeout);
    }

    /// Abandons both halves. A stream that has ended stays as it is.
    pub fn reset(&self, reason: Reason) {
        self.stream_ref.reset(reason);
    }

    /// Abandons both halves behind what was written.
    pub fn abort(&self, reason: Reason) {
        self.stream_ref
            .shared
            .with(|mux, _| mux.abort(self.stream_ref.id, reason));
    }
}

/// The half that carries bytes to the peer.
pub struct SendStream {
    stream_ref: Arc<StreamRef>,
    pause: Pause,
}

impl SendStream {
    /// Waits until the stream takes bytes, and returns how many.
    ///
    /// # Errors
    ///
    /// [`WriteError`], never [`WriteError::Blocked`].
    pub async fn capacity(&mut self) -> Result<usize, WriteError> {
        poll_fn(|cx| self.stream_ref.poll_pace(&mut self.pause, cx)).await;
        poll_fn(|cx| self.stream_ref.poll_capacity(cx)).await
    }

    /// Sends `data`, waiting for capacity as often as it takes.
    ///
    /// # Errors
    ///
    /// [`WriteError`], never [`WriteError::Blocked`].
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), WriteError> {
        while !data.is_empty() {
            poll_fn(|cx| self.stream_ref.poll_pace(&mut self.pause, cx)).await;
            match self.stream_ref.write(data.clone()) {
                Ok(taken) => data.advance(taken),
                Err(WriteError::Blocked) => {
                    self.capacity().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Finishes this half behind what was written.
    ///
    /// # Errors
    ///
    /// The ending, when the stream is over.
    pub fn finish(&mut self) -> Result<(), Ending> {
        self.stream_ref
            .shared
            .with(|mux, _| mux.finish(self.stream_ref.id))
    }
}

/// The half that carries the peer's bytes.
pub struct ReceiveStream {
    stream_ref: Arc<StreamRef>,
    pause: Pause,
}

impl ReceiveStream {
    /// Waits for bytes, at most `max`; `None` after the peer's finish.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never [`ReadError::Blocked`].
    pub async fn read(&mut self, max: usize) -> Result<Option<Bytes>, ReadError> {
        poll_fn(|cx| self.stream_ref.poll_pace(&mut self.pause, cx)).await;
        poll_fn(|cx| self.stream_ref.poll_read(cx, max)).await
    }

    /// Reports that `length` bytes went where they belong, so that the peer may send as many more.
    pub fn consume(&mut self, length: usize) {
        self.stream_ref.consume(length);
    }

    /// Reports that everything up to the peer's finish went where it belongs.
    pub fn deliver(&mut self) {
        self.stream_ref.deliver();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.chunk.is_empty() {
            let Self {
                stream_ref, reads, ..
            } = &mut *self;
            ready!(stream_ref.poll_pace(reads, cx));
            match ready!(self.stream_ref.poll_read(cx, buf.remaining())) {
                Ok(Some(chunk)) => self.chunk = chunk,
                Ok(None) => {
                    if self.stream_ref.is_connection.load(Ordering::Relaxed) {
                        self.stream_ref.deliver();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)));
                }
            }
        }
        let length = self.chunk.len().min(buf.remaining());
        let piece = self.chunk.split_to(length);
        buf.put_slice(&piece);
        self.stream_ref.consume(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let Self {
            stream_ref, writes, ..
        } = &mut *self;
        ready!(stream_ref.poll_pace(writes, cx));
        let broken = |error| io::Error::new(io::ErrorKind::BrokenPipe, error);
        let capacity = ready!(self.stream_ref.poll_capacity(cx)).map_err(broken)?;
        let piece = data.get(..capacity).unwrap_or(data);
        match self.stream_ref.write(Bytes::copy_from_slice(piece)) {
            Err(WriteError::Blocked) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            done => Poll::Ready(done.map_err(broken)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A stream that is over has nothing left to finish.
        let _ = self
            .stream_ref
            .shared
            .with(|mux, _| mux.finish(self.stream_ref.id));
        Poll::Ready(Ok(()))
    }
}
