//! One WebSocket and one session: the only place where they meet, and the only loop that waits for
//! both.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Sink, SinkExt as _, Stream as _};
use tokio::time::{Sleep, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;
use tunnel_proto::Time;
use tunnel_proto::mux::{Reason, SessionError};
use tunnel_proto::wire::{DecodeError, Dialect};

use crate::io::clock::Clock;
use crate::io::socket::Options;
use crate::io::tls::Transport;
use crate::session::{MessageError, Session};

/// The bounds of a link. Whatever its peer does, a link holds about
/// `read_buffer + message_max + 2 * (batch + frame_max)` bytes, and with TLS 128 KiB more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes read from the socket at once.
    pub read_buffer: usize,
    /// The longest message that is taken, in bytes.
    pub message_max: usize,
    /// The same for remotedialer's dialect, whose Go programs send in one message whatever their
    /// user writes at once.
    pub remotedialer_message_max: usize,
    /// Frames are gathered into one message until it has this many bytes. With the WebSocket's own
    /// head that is best just below the peer's `read_buffer`: what a read brings of a next message
    /// is copied.
    pub batch: usize,
    /// Unsent bytes that the kernel holds; a ping waits behind them.
    pub unsent: u32,
    /// How long a message may wait for a peer that does not read.
    pub write_stall: Duration,
    /// How TCP finds out that the other end is gone, besides the session's own pings.
    pub tcp: Options,
    /// How long the last frame may take to leave when the session ends.
    pub close_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            read_buffer: 64 * 1024,
            message_max: 256 * 1024,
            remotedialer_message_max: 16 * 1024 * 1024,
            batch: 64 * 1024 - 64,
            unsent: 128 * 1024,
            write_stall: Duration::from_secs(30),
            tcp: Options::LINKS,
            close_timeout: Duration::from_millis(250),
        }
    }
}

impl Config {
    /// Returns the settings of the WebSocket.
    #[must_use]
    pub fn websocket(&self, dialect: Dialect) -> WebSocketConfig {
        let message_max = match dialect {
            Dialect::Native => self.message_max,
            Dialect::Remotedialer => self.remotedialer_message_max,
        };
        WebSocketConfig::default()
            .read_buffer_size(self.read_buffer)
            .write_buffer_size(0)
            .max_write_buffer_size(self.batch.saturating_mul(4).max(self.message_max))
            .max_message_size(Some(message_max))
            .max_frame_size(Some(message_max))
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The session is over.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The peer sent what are not frames.
    #[error("the peer does not speak the dialect: {0}")]
    Dialect(#[from] DecodeError),
    /// The WebSocket failed.
    #[error("the WebSocket failed: {0}")]
    WebSocket(#[from] Box<WsError>),
    /// The peer ended the WebSocket.
    #[error("the peer ended the WebSocket")]
    Gone,
    /// The peer reads nothing.
    #[error("the peer has not read for too long")]
    WriteStall,
}

impl LinkError {
    /// Whether the peer sent a message or a frame that is longer than may be.
    pub(crate) fn is_too_long(&self) -> bool {
        match self {
            Self::WebSocket(error) => matches!(**error, WsError::Capacity(_)),
            Self::Session(_) | Self::Dialect(_) | Self::Gone | Self::WriteStall => false,
        }
    }
}

/// Drives a link until its session is over. The session is told before the socket is released, on
/// every path.
pub struct Link {
    // Fields drop in this order: the session ends first.
    ending: EndsSession,
    websocket: WebSocketStream<Transport>,
    config: Config,
    clock: Clock,
    batch: BytesMut,
    flushing: Option<Time>,
    /// The next turn sends at once.
    sends: bool,
    timer: Pin<Box<Sleep>>,
}

struct EndsSession(Session);

impl Drop for EndsSession {
    fn drop(&mut self) {
        self.0.link_lost();
    }
}

impl Link {
    /// Makes a link of a WebSocket after its handshake.
    #[must_use]
    pub fn new(
        websocket: WebSocketStream<Transport>,
        session: Session,
        config: Config,
        clock: Clock,
    ) -> Self {
        let socket = websocket.get_ref().socket();
        socket.bound_unsent(config.unsent);
        socket.set_options(config.tcp);
        Self {
            ending: EndsSession(session),
            websocket,
            config,
            clock,
            batch: BytesMut::new(),
            flushing: None,
            sends: false,
            timer: Box::pin(sleep_until(clock.instant(clock.now()))),
        }
    }

    /// Runs the link to its end, which is also its session's.
    pub async fn run(mut self) -> LinkError {
        let error = poll_fn(|cx| self.poll(cx)).await;
        self.ending.0.link_lost();
        // The last frame says why; a peer that does not take it learns it from the end of the
        // connection.
        let _ = tokio::time::timeout(self.config.close_timeout, self.send_close()).await;
        error
    }

    /// Runs the link to its end, or ends its session when `cancelled`.
    pub async fn run_until(self, cancelled: &CancellationToken) -> LinkError {
        let session = self.ending.0.clone();
        let mut run = pin!(self.run());
        tokio::select! {
            biased;
            error = run.as_mut() => error,
            () = cancelled.cancelled() => {
                session.end(Reason::SessionOver);
                run.await
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        if let Err(error) = self.poll_receive(cx) {
            return Poll::Ready(error);
        }
        // What is new waits for one turn of the scheduler, so that frames of other streams that are
        // about to run go out with it.
        if (self.sends || self.flushing.is_some())
            && let Err(error) = self.poll_send(cx)
        {
            return Poll::Ready(error);
        }
        if let Some(error) = self.ending.0.ended() {
            return Poll::Ready(error.into());
        }
        self.poll_timer(cx)
    }

    /// How many bytes one direction may handle before the other, and the streams, have their turn.
    fn turn(&self) -> usize {
        match self.ending.0.streams() {
            0 | 1 => TURN_ALONE,
            _ => TURN_SHARED,
        }
    }

    /// Takes everything that has arrived, up to a bound that leaves room for sending.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        let mut left = self.turn();
        for _ in 0..MESSAGES_PER_TURN {
            let message = match Pin::new(&mut self.websocket).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => return Err(LinkError::Gone),
                Poll::Ready(Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed))) => {
                    return Err(LinkError::Gone);
                }
                Poll::Ready(Some(Err(error))) => return Err(Box::new(error).into()),
                Poll::Ready(Some(Ok(message))) => message,
            };
            match message {
                Message::Binary(bytes) => {
                    left = left.saturating_sub(bytes.len());
                    self.ending
                        .0
                        .recv_message(bytes)
                        .map_err(|error| match error {
                            MessageError::Session(error) => LinkError::Session(error),
                            MessageError::Dialect(error) => LinkError::Dialect(error),
                        })?;
                }
                Message::Close(_) => return Err(LinkError::Gone),
                // The WebSocket answers pings by itself.
                Message::Ping(_) => self.ending.0.recv_heartbeat(false),
                Message::Pong(_) => self.ending.0.recv_heartbeat(true),
                // Text has no meaning in either dialect.
                Message::Text(_) | Message::Frame(_) => {}
            }
            if left == 0 {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Sends batch after batch until there is nothing left or the socket takes no more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        let mut left = self.turn();
        for _ in 0..MESSAGES_PER_TURN {
            if self.flushing.is_some() {
                match Pin::new(&mut self.websocket).poll_flush(cx) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(result) => result.map_err(Box::new)?,
                }
                self.flushing = None;
            }
            let message = if self.ending.0.send_ping() {
                Message::Ping(Bytes::new())
            } else {
                self.batch.reserve(BATCH_MIN);
                self.ending
                    .0
                    .send_message(self.config.batch, &mut self.batch);
                if self.batch.is_empty() {
                    return Ok(());
                }
                left = left.saturating_sub(self.batch.len());
                Message::Binary(self.batch.split().freeze())
            };
            Pin::new(&mut self.websocket)
                .start_send(message)
                .map_err(Box::new)?;
            self.flushing = Some(self.clock.now());
            if left == 0 {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        loop {
            let stalled = self
                .flushing
                .map(|since| since.saturating_add(self.config.write_stall));
            if stalled.is_some_and(|stalled| self.clock.now() >= stalled) {
                return Poll::Ready(LinkError::WriteStall);
            }
            let due;
            (self.sends, due) = self.ending.0.register_link(cx, self.flushing.is_some());
            let Some(due) = due.into_iter().chain(stalled).min() else {
                return Poll::Pending;
            };
            let deadline = self.clock.instant(due);
            if self.timer.deadline() != deadline {
                self.timer.as_mut().reset(deadline);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.ending.0.handle_timeout();
            if let Some(error) = self.ending.0.ended() {
                return Poll::Ready(error.into());
            }
        }
    }

    async fn send_close(&mut self) -> Result<(), WsError> {
        poll_fn(|cx| {
            if self.poll_send(cx).is_err() || self.flushing.is_none() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        self.websocket.feed(Message::Close(None)).await?;
        self.websocket.flush().await?;
        self.websocket.get_mut().send_close_notify();
        Ok(())
    }
}

/// How many messages one direction may handle in a turn of it.
const MESSAGES_PER_TURN: usize = 16;

/// The bytes of a turn when a session has one stream, which waits for nobody else.
const TURN_ALONE: usize = 1024 * 1024;

/// The same when it has several: a few bytes of one wait behind so many of the others.
const TURN_SHARED: usize = 240 * 1024;

/// The room that a batch starts with, so that small answers need no growth.
const BATCH_MIN: usize = 4 * 1024;
