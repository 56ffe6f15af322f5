//! Joins a socket and a stream. The two directions are independent until one of them breaks.
//!
//! The end of one direction is passed on as a half-close, and the other direction goes on. A reset
//! of either side resets the other. The socket is watched for a reset even while flow control
//! forbids reading from it.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use tokio::sync::Notify;
use tokio::time::timeout;
use tunnel_proto::mux::{By, Ending, ReadError, Reason, WriteError};

use crate::io::socket::{Options, ReadBuffer, Socket};
use crate::metrics::Timeout;
use crate::session::{ReceiveStream, SendStream, Stream, Watch};

/// The bounds of one splice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The most bytes of one read from or write to the socket. A good value is the size of a batch
    /// on the link.
    pub piece: usize,
    /// Bytes that one direction moves before it yields to the tasks of other streams. It bounds how
    /// long small messages wait behind busy streams.
    pub turn: usize,
    /// How long a half-closed pair may be idle before it is reset. It may take twice as long.
    pub linger: Duration,
    /// How long a stream may be idle in both directions before its session resets it. It may take
    /// half as long again. `None` means no limit.
    pub idle: Option<Duration>,
    /// How TCP detects that a visitor or a target is gone.
    pub tcp: Options,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            piece: 64 * 1024 - 128,
            turn: 128 * 1024,
            linger: Duration::from_secs(60),
            idle: None,
            tcp: Options::STREAMS,
        }
    }
}

/// Why a splice stopped.
enum Broken {
    /// The stream ended.
    Stream,
    /// Reading from the socket failed.
    Read,
    /// Writing to the socket failed. There may still be bytes to read.
    Write,
    /// A timeout passed without a byte.
    Silent(Timeout),
}

impl From<WriteError> for Broken {
    fn from(_: WriteError) -> Self {
        Self::Stream
    }
}

impl From<ReadError> for Broken {
    fn from(_: ReadError) -> Self {
        Self::Stream
    }
}

impl From<Ending> for Broken {
    fn from(_: Ending) -> Self {
        Self::Stream
    }
}

/// How long bytes that were sent before a break may take to be passed on.
pub(crate) const FLUSH_GRACE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Progress {
    moved: AtomicU64,
    half: Notify,
    read: Notify,
    broken: AtomicBool,
    /// TCP timed out.
    timed_out: AtomicBool,
}

impl Progress {
    fn moved(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn failed(&self, error: &io::Error, broken: Broken) -> Broken {
        if error.kind() == io::ErrorKind::TimedOut {
            self.timed_out.store(true, Ordering::Relaxed);
        }
        broken
    }

    /// Returns when one direction has finished and the other has moved nothing for `linger`.
    async fn silent(&self, linger: Duration) {
        self.half.notified().await;
        self.still(linger).await;
    }

    async fn still(&self, limit: Duration) {
        let mut before = self.moved.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(limit).await;
            let now = self.moved.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    }
}

/// Makes one direction yield to the scheduler now and then. Sockets and streams that are always
/// ready would never make it wait.
struct Turn<'a> {
    watch: &'a Watch,
    length: usize,
    moved: usize,
}

impl<'a> Turn<'a> {
    const fn new(watch: &'a Watch, config: Config) -> Self {
        Self {
            watch,
            length: config.turn,
            moved: 0,
        }
    }

    async fn moved(&mut self, bytes: usize) {
        self.moved += bytes;
        if self.moved >= self.length {
            self.moved = 0;
            if !self.watch.is_alone() {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Joins `socket` and `stream` like [`splice_after`], with no early bytes.
pub async fn splice(socket: Socket, stream: Stream, config: Config) -> Ending {
    splice_after(Bytes::new(), socket, stream, config).await
}

/// Joins `socket` and `stream` until both directions have finished or one breaks, then closes the
/// socket, and returns how the stream ended. `early` is what was already read from the socket. The
/// socket is closed as soon as nothing is left to do with it.
pub async fn splice_after(early: Bytes, socket: Socket, stream: Stream, config: Config) -> Ending {
    let watch = stream.watch();
    let (send, receive) = stream.split();
    let progress = Progress::default();
    let finished = {
        let turn = || Turn::new(&watch, config);
        let inward = carry_in(&socket, early, send, turn(), config.piece, &progress);
        let outward = carry_out(&socket, receive, turn(), config.piece, &progress);
        let (mut inward, mut outward) = (pin!(inward.fuse()), pin!(outward.fuse()));
        let reset_after_end = async {
            progress.read.notified().await;
            socket.hung_up().await;
        };
        let result = tokio::select! {
            biased;
            ending = watch.ended() => match ending {
                Ending::Finished => Ok(()),
                Ending::Reset(..) => Err(Broken::Stream),
            },
            result = async { tokio::try_join!(inward.as_mut(), outward.as_mut()) } => result.map(|_| ()),
            () = reset_after_end => Err(Broken::Read),
            () = progress.silent(config.linger) => Err(Broken::Silent(Timeout::Linger)),
        };
        let broke = matches!(result, Err(Broken::Read | Broken::Write));
        if broke && (progress.timed_out.load(Ordering::Relaxed) || socket.timed_out()) {
            watch.timed_out(Timeout::Tcp);
        }
        // Bytes that the other direction still holds were sent before the break.
        match result {
            Ok(()) => {}
            Err(Broken::Stream) => {
                let aborted = watch.ended().await == Ending::Reset(Reason::Aborted, By::Peer);
                if aborted && !outward.is_terminated() {
                    let _ = timeout(FLUSH_GRACE, outward).await;
                }
            }
            Err(Broken::Read) => watch.abort(Reason::Aborted),
            Err(Broken::Write) => {
                if !inward.is_terminated() {
                    let _ = timeout(FLUSH_GRACE, inward).await;
                }
                watch.abort(Reason::Aborted);
            }
            Err(Broken::Silent(timeout)) => {
                watch.timed_out(timeout);
                watch.reset(Reason::TimedOut);
            }
        }
        result.is_ok()
    };
    let ending = watch.ended().now_or_never();
    if !finished && !matches!(ending, Some(Ending::Reset(Reason::Done, _))) {
        socket.reset_on_release();
    }
    drop(socket);
    if !finished && timeout(FLUSH_GRACE, watch.ended()).await.is_err() {
        watch.reset(Reason::Aborted);
    }
    watch.ended().await
}

/// From the socket into the stream.
async fn carry_in(
    socket: &Socket,
    mut early: Bytes,
    mut send: SendStream,
    mut turn: Turn<'_>,
    piece: usize,
    progress: &Progress,
) -> Result<(), Broken> {
    let mut buffer = ReadBuffer::default();
    loop {
        let capacity = tokio::select! {
            biased;
            capacity = send.capacity() => match capacity {
                Ok(capacity) => capacity,
                // The peer reads no more, but what it sent still has to be delivered.
                Err(WriteError::Finished) => {
                    progress.half.notify_one();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            },
            // Without capacity nothing is read, so no read would report a reset.
            () = socket.hung_up() => return Err(Broken::Read),
        };
        let most = capacity.min(piece);
        let data = if early.is_empty() {
            let read = socket.read(&mut buffer, most).await;
            read.map_err(|error| progress.failed(&error, Broken::Read))?
        } else {
            early.split_to(early.len().min(most))
        };
        if data.is_empty() {
            // A failed write has consumed the error that a read would report.
            if progress.broken.load(Ordering::Relaxed) {
                return Err(Broken::Read);
            }
            send.finish()?;
            progress.half.notify_one();
            progress.read.notify_one();
            return Ok(());
        }
        let length = data.len();
        progress.moved(length);
        let written = tokio::select! {
            biased;
            written = send.write(data) => written,
            // The capacity may be gone by now.
            () = socket.hung_up() => return Err(Broken::Read),
        };
        match written {
            Ok(()) => turn.moved(length).await,
            Err(WriteError::Finished) => {
                progress.half.notify_one();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// From the stream into the socket.
async fn carry_out(
    socket: &Socket,
    mut receive: ReceiveStream,
    mut turn: Turn<'_>,
    piece: usize,
    progress: &Progress,
) -> Result<(), Broken> {
    while let Some(data) = receive.read(piece).await? {
        let mut rest = data.as_ref();
        while !rest.is_empty() {
            let written = socket.write(rest).await.map_err(|error| {
                progress.broken.store(true, Ordering::Relaxed);
                progress.failed(&error, Broken::Write)
            })?;
            rest = rest.get(written..).unwrap_or_default();
            progress.moved(written);
        }
        receive.consume(data.len());
        turn.moved(data.len()).await;
    }
    socket.finish().map_err(|_| Broken::Write)?;
    receive.deliver();
    progress.half.notify_one();
    Ok(())
}
