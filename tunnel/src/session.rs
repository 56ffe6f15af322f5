//! One session: the core behind a lock, and the handles that tasks use to reach it.
//!
//! Every call takes the lock for the time of one core command, passes the events of the core on
//! (wakers, END annotations, counters) and wakes the link when there is something to send. So an
//! END is told in the very call in which the stream ended by protocol, before its user can have let
//! any socket go, and wherever the teardown code is.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

mod core;
mod health;
mod idle;
pub mod link;
pub(crate) mod stats;
mod stream;
pub(crate) mod throttle;

#[cfg(test)]
mod tests;

use tunnel_proto::Time;
use tunnel_proto::mux::{By, Ending, Event, OpenError, Reason, SessionError};
use tunnel_proto::target::Target;
use tunnel_proto::wire::frame::StreamId;

use crate::io::clock::Clock;
use crate::io::socket::{Mark, Owner};
use crate::metrics::{SessionMetrics, StreamMetrics};
pub use crate::session::core::Core;
pub(crate) use crate::session::core::MessageError;
use crate::session::idle::Moved;
pub use crate::session::stats::{SessionStats, StreamStats};
pub use crate::session::stream::{Incoming, Opening, ReceiveStream, SendStream, Stream, Watch};
use crate::session::throttle::Throttle;

/// A handle to one session. Cloning it is cheap; the session ends with its link and not with its
/// handles.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    id: u64,
    clock: Clock,
    began: Time,
    link_socket: Mark,
    metrics: SessionMetrics,
    throttle: OnceLock<Arc<Throttle>>,
    over: CancellationToken,
    peer_draining: CancellationToken,
    state: Mutex<State>,
}

struct State {
    mux: Core,
    slots: HashMap<StreamId, Slot>,
    incoming: VecDeque<(StreamId, Bytes)>,
    link: Option<Waker>,
    acceptor: Option<Waker>,
    idle: Option<Waker>,
}

/// Who waits for what of one stream, one task each, and what is told of it.
struct Slot {
    target: Bytes,
    began: Time,
    opened: Option<Waker>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    ended: Option<Waker>,
    metrics: Option<StreamMetrics>,
    moved: Moved,
    /// Its user let go of the stream, which goes on without.
    left: bool,
}

impl Slot {
    /// The target is copied: it may be a piece of a long message.
    fn new(target: &[u8], began: Time) -> Self {
        Self {
            target: Bytes::copy_from_slice(target),
            began,
            opened: None,
            reader: None,
            writer: None,
            ended: None,
            metrics: None,
            moved: Moved::new(began),
            left: false,
        }
    }

    fn accepted(&self, now: Time) {
        if let Some(metrics) = &self.metrics {
            metrics.accepted(now.saturating_sub(self.began));
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Creates a session. `link_socket` is the link's socket: END annotations are told through it.
    #[must_use]
    pub fn new(
        id: u64,
        core: Core,
        clock: Clock,
        link_socket: Mark,
        metrics: SessionMetrics,
    ) -> Self {
        let state = State {
            mux: core,
            slots: HashMap::new(),
            incoming: VecDeque::new(),
            link: None,
            acceptor: None,
            idle: None,
        };
        Self {
            shared: Arc::new(Shared {
                id,
                clock,
                began: clock.now(),
                link_socket,
                metrics,
                throttle: OnceLock::new(),
                over: CancellationToken::new(),
                peer_draining: CancellationToken::new(),
                state: Mutex::new(state),
            }),
        }
    }

    /// Slows its streams down from now on. Only the first call counts.
    pub(crate) fn throttle(&self, throttle: Arc<Throttle>) {
        let _ = self.shared.throttle.set(throttle);
    }

    /// Returns the identifier that both ends use in their annotations.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Returns the owner of the link's socket: the session as a whole.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner {
            session: self.id(),
            stream: 0,
        }
    }

    /// Starts to open a stream. Dropping the result cancels the open.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when there cannot be a stream now.
    pub fn open(&self, target: &Target) -> Result<Opening, OpenError> {
        self.open_as(target, target.to_string())
    }

    /// Starts to open a stream to a target of `client`, which the peer has announced. Dropping the
    /// result cancels the open.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when there cannot be a stream now.
    pub fn open_through(&self, client: &str, target: &Target) -> Result<Opening, OpenError> {
        self.open_as(target, format!("{client}::{target}"))
    }

    fn open_as(&self, target: &Target, text: String) -> Result<Opening, OpenError> {
        let now = self.shared.clock.now();
        let mut state = self.shared.lock();
        if matches!(target, Target::Udp(_)) && !state.mux.carries_datagrams() {
            return Err(OpenError::NoDatagrams);
        }
        let mut slot = Slot::new(text.as_bytes(), now);
        let id = state.mux.open(now, Bytes::from(text))?;
        slot.metrics = Some(self.shared.metrics.stream_began(target));
        state.slots.insert(id, slot);
        self.shared.settle(&mut state);
        drop(state);
        Ok(Opening::new(Stream::new(Arc::clone(&self.shared), id)))
    }

    /// Tells the peer, a server that we dialed, that streams of `client` can be opened through us
    /// by the session `key`, or no longer. It never waits: what the peer has not read stays in the
    /// session, once for each client.
    pub fn announce(&self, client: &str, key: i64, present: bool) {
        self.shared
            .with(|mux, _| mux.announce(client, key, present));
    }

    /// Whether the peer, a server that dialed us, has announced `client`.
    #[must_use]
    pub fn has_client(&self, client: &str) -> bool {
        self.shared.lock().mux.has_client(client)
    }

    /// Waits for the next stream that the peer opens; `None` when the session is over.
    pub async fn accept(&self) -> Option<Incoming> {
        std::future::poll_fn(|cx| {
            let mut state = self.shared.lock();
            if let Some((id, target)) = tunnel_proto::shrink::pop(&mut state.incoming) {
                drop(state);
                let stream = Stream::new(Arc::clone(&self.shared), id);
                return Poll::Ready(Some(Incoming::new(stream, target)));
            }
            if state.mux.over().is_some() {
                return Poll::Ready(None);
            }
            register(&mut state.acceptor, cx);
            Poll::Pending
        })
        .await
    }

    /// Takes no new streams from now on and tells the peer. Those that are open go on.
    pub fn drain(&self) {
        self.shared.with(|mux, _| mux.drain());
    }

    /// Waits until no stream is left, or the session is over. One task may wait.
    pub async fn idle(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.shared.lock();
            if state.mux.streams() == 0 || state.mux.over().is_some() {
                return Poll::Ready(());
            }
            register(&mut state.idle, cx);
            Poll::Pending
        })
        .await;
    }

    /// Whether the peer acknowledges what was delivered. One that does not needs a moment to pass
    /// on what was sent last, before it hears that the session is over.
    #[must_use]
    pub fn acknowledges(&self) -> bool {
        match self.shared.lock().mux {
            Core::Native(_) => true,
            Core::Remotedialer { .. } => false,
        }
    }

    /// Ends the session and all its streams; the link sends the reason as its last frame.
    pub fn end(&self, reason: Reason) {
        self.shared.with(|mux, _| mux.end_session(reason));
    }

    /// Returns the token that is cancelled when the session is over.
    #[must_use]
    pub fn over(&self) -> &CancellationToken {
        &self.shared.over
    }

    /// Returns the token that is cancelled when the peer takes no new streams.
    #[must_use]
    pub fn peer_draining(&self) -> &CancellationToken {
        &self.shared.peer_draining
    }

    /// Returns the number of streams that are alive or whose handles are.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.shared.lock().mux.streams()
    }

    /// For the link: takes the bytes of one WebSocket message.
    ///
    /// # Errors
    ///
    /// [`MessageError`] when the session is over or must be; the link lets go.
    pub(crate) fn recv_message(&self, bytes: Bytes) -> Result<(), MessageError> {
        let now = self.shared.clock.now();
        let (result, rtt) = self
            .shared
            .with(|mux, _| (mux.handle_message(now, bytes), mux.poll_rtt()));
        if let Some(rtt) = rtt {
            self.shared.metrics.pong(rtt);
        }
        result
    }

    /// For the link: takes note of a WebSocket ping or pong.
    pub(crate) fn recv_heartbeat(&self, pong: bool) {
        let now = self.shared.clock.now();
        self.shared.with(|mux, _| mux.handle_heartbeat(now, pong));
    }

    /// For the link: appends the next WebSocket message of about `batch` bytes to `out`; nothing
    /// when there is none.
    pub(crate) fn send_message(&self, batch: usize, out: &mut BytesMut) {
        let mut state = self.shared.lock();
        let transmitted = state.mux.poll_message(batch, out);
        self.shared.metrics.transmitted(transmitted);
        self.shared.pass_on(&mut state);
    }

    /// For the link: whether a WebSocket ping is to be sent now, before any message.
    pub(crate) fn send_ping(&self) -> bool {
        self.shared.lock().mux.poll_ping()
    }

    /// For the link: registers it to be woken when there is something to send, and returns its next
    /// deadline, and whether it need not wait for others the next time: it did already, or there
    /// are none. A link that waits for its socket has no use for more frames.
    pub(crate) fn register_link(&self, cx: &Context<'_>, waits: bool) -> (bool, Option<Time>) {
        let mut state = self.shared.lock();
        register(&mut state.link, cx);
        let sends = !waits && state.mux.has_transmit();
        if sends {
            cx.waker().wake_by_ref();
        }
        (sends || state.mux.streams() <= 1, state.mux.poll_timeout())
    }

    /// For the link: takes note of time.
    pub(crate) fn handle_timeout(&self) {
        let now = self.shared.clock.now();
        self.shared.with(|mux, _| mux.handle_timeout(now));
    }

    /// For the link: it is gone, and the session with it.
    pub(crate) fn link_lost(&self) {
        self.shared.with(|mux, _| mux.handle_link_lost());
    }

    /// For the link: why the session is over, if it is.
    pub(crate) fn ended(&self) -> Option<SessionError> {
        self.shared.lock().mux.over()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The core does not panic; if it did, its streams must still come to their end.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, command: impl FnOnce(&mut Core, &mut HashMap<StreamId, Slot>) -> T) -> T {
        let mut state = self.lock();
        let State { mux, slots, .. } = &mut *state;
        let result = command(mux, slots);
        self.settle(&mut state);
        result
    }

    /// Passes events on and wakes the link if it has something to send.
    fn settle(&self, state: &mut State) {
        self.pass_on(state);
        if state.mux.has_transmit() {
            wake(&mut state.link);
        }
    }

    fn pass_on(&self, state: &mut State) {
        while let Some(event) = state.mux.poll_event() {
            match event {
                Event::Opened { stream, target } => {
                    let slot = Slot::new(&target, self.clock.now());
                    state.incoming.push_back((stream, slot.target.clone()));
                    state.slots.insert(stream, slot);
                    wake(&mut state.acceptor);
                }
                Event::Accepted { stream } => {
                    if let Some(slot) = state.slots.get_mut(&stream) {
                        slot.accepted(self.clock.now());
                        wake(&mut slot.opened);
                    }
                }
                Event::Readable { stream } => {
                    if let Some(slot) = state.slots.get_mut(&stream) {
                        wake(&mut slot.reader);
                    }
                }
                Event::Writable { stream } => {
                    if let Some(slot) = state.slots.get_mut(&stream) {
                        wake(&mut slot.writer);
                    }
                }
                Event::Ended { stream, ending } => self.stream_ended(state, stream, ending),
                Event::PeerDraining => self.peer_draining.cancel(),
                Event::TooManyClients => {
                    tracing::warn!(
                        session = self.id,
                        "the peer has more clients than are remembered; some cannot be reached through it"
                    );
                }
                Event::SessionOver(error) => self.session_over(state, error),
            }
        }
        if state.mux.streams() == 0 {
            wake(&mut state.idle);
        }
    }

    fn stream_ended(&self, state: &mut State, stream: StreamId, ending: Ending) {
        tracing::debug!(session = self.id, stream = stream.number(), %ending, "stream ended");
        self.link_socket.end(self.stream_owner(stream), ending);
        if let Some(slot) = state.slots.get_mut(&stream) {
            if let Some(metrics) = slot.metrics.take() {
                metrics.ended(ending, self.clock.now().saturating_sub(slot.began));
            }
            if slot.left {
                state.slots.remove(&stream);
                return;
            }
            wake(&mut slot.opened);
            wake(&mut slot.reader);
            wake(&mut slot.writer);
            wake(&mut slot.ended);
        }
    }

    fn session_over(&self, state: &mut State, error: SessionError) {
        tracing::debug!(session = self.id, %error, "session over");
        let whole = Owner {
            session: self.id,
            stream: 0,
        };
        self.link_socket
            .end(whole, Ending::Reset(error.reason(), By::Us));
        self.metrics.over(error.reason());
        self.over.cancel();
        wake(&mut state.acceptor);
        wake(&mut state.idle);
        wake(&mut state.link);
    }

    fn stream_owner(&self, stream: StreamId) -> Owner {
        Owner {
            session: self.id,
            stream: stream.number(),
        }
    }

    /// The last handle of a stream that is used as a connection is gone.
    fn detach(&self, stream: StreamId) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.mux.detach(now, stream);
        if let Some(slot) = state.slots.get_mut(&stream) {
            slot.left = true;
        }
        self.settle(&mut state);
        // There is a deadline now, and perhaps nothing to send that would have the link look at it.
        wake(&mut state.link);
        if state.mux.ending(stream).is_some() {
            state.slots.remove(&stream);
        }
    }

    /// The last handle of a stream is gone.
    fn release(&self, stream: StreamId) {
        let mut state = self.lock();
        state.mux.release(stream);
        self.settle(&mut state);
        state.slots.remove(&stream);
        tunnel_proto::shrink::shrink_if_sparse(&mut state.slots);
    }
}
