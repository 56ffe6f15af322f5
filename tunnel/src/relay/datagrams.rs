//! Joins a flow of datagrams and a stream.
//!
//! Datagrams may be lost, so nothing waits for one. A datagram that meets a full queue or a full
//! socket buffer is dropped and counted. A flow has no end of its own. It ends with its stream, or
//! when it has been idle for a time.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tunnel_proto::mux::{Ending, Reason};
use tunnel_proto::wire::datagram;
use tunnel_proto::wire::datagram::Decoder;

use crate::metrics::{Dropped, Metrics};
use crate::session::{ReceiveStream, SendStream, Stream};

/// The limits of flows. The queues of a listener hold at most `flows_max * queue` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The most flows of one listener at once.
    pub flows_max: usize,
    /// The most bytes of a flow's datagrams that wait for its stream. Each datagram counts
    /// [`DATAGRAM_COST`] bytes more.
    pub queue: usize,
    /// How long a flow may be idle before it ends. It may take twice as long.
    pub idle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flows_max: 512,
            queue: 128 * 1024,
            idle: Duration::from_secs(60),
        }
    }
}

/// What a queued datagram counts besides its bytes.
pub const DATAGRAM_COST: usize = 64;

/// The sending end of a queue of datagrams.
#[derive(Clone, Debug)]
pub(crate) struct QueueSender {
    datagrams: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
}

/// The receiving end of a queue of datagrams.
#[derive(Debug)]
pub(crate) struct QueueReceiver {
    datagrams: mpsc::UnboundedReceiver<Queued>,
}

#[derive(Debug)]
struct Queued {
    datagram: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Makes a queue of at most `bytes`.
pub(crate) fn queue(bytes: usize) -> (QueueSender, QueueReceiver) {
    // The semaphore bounds the channel: every datagram takes permits.
    let (sender, receiver) = mpsc::unbounded_channel();
    let sender = QueueSender {
        datagrams: sender,
        room: Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))),
    };
    (
        sender,
        QueueReceiver {
            datagrams: receiver,
        },
    )
}

impl QueueSender {
    /// Queues a datagram, or drops it.
    ///
    /// # Errors
    ///
    /// [`Dropped::Queue`] if the queue is full, [`Dropped::Stream`] if the receiver is gone.
    pub(crate) fn try_send(&self, datagram: Bytes) -> Result<(), Dropped> {
        let cost = u32::try_from(datagram.len() + DATAGRAM_COST).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(cost);
        let queued = Queued {
            datagram,
            _room: room.map_err(|_| Dropped::Queue)?,
        };
        self.datagrams.send(queued).map_err(|_| Dropped::Stream)
    }
}

/// Carries datagrams both ways until the stream ends or no datagram has passed for `idle`, and
/// returns how the stream ended. `send` passes on one datagram from the peer.
pub(crate) async fn carry(
    stream: Stream,
    receiver: QueueReceiver,
    send: impl Fn(&[u8]) -> io::Result<()>,
    idle: Option<Duration>,
    metrics: Option<&Metrics>,
) -> Ending {
    let watch = stream.watch();
    let (to_peer, from_peer) = stream.split();
    let passed = AtomicU64::new(0);
    let reason = tokio::select! {
        biased;
        ending = watch.ended() => return ending,
        reason = carry_in(receiver, to_peer, &passed) => reason,
        reason = carry_out(from_peer, &send, &passed, metrics) => reason,
        () = idle_timeout(&passed, idle) => Reason::Done,
    };
    watch.reset(reason);
    watch.ended().await
}

async fn carry_in(
    mut receiver: QueueReceiver,
    mut stream: SendStream,
    passed: &AtomicU64,
) -> Reason {
    let mut frames = BytesMut::new();
    while let Some(Queued { datagram, _room }) = receiver.datagrams.recv().await {
        datagram::encode(&datagram, &mut frames);
        if stream.write(frames.split().freeze()).await.is_err() {
            return Reason::Aborted;
        }
        passed.fetch_add(1, Ordering::Relaxed);
    }
    Reason::Done
}

async fn carry_out(
    mut stream: ReceiveStream,
    send: &impl Fn(&[u8]) -> io::Result<()>,
    passed: &AtomicU64,
    metrics: Option<&Metrics>,
) -> Reason {
    let mut decoder = Decoder::default();
    loop {
        match stream.read(PIECE).await {
            Ok(Some(bytes)) => {
                decoder.push(&bytes);
                for datagram in decoder.by_ref() {
                    if let Err(error) = send(&datagram) {
                        tracing::debug!(%error, "datagram dropped");
                        count_dropped(metrics, Dropped::Socket);
                    }
                    passed.fetch_add(1, Ordering::Relaxed);
                }
                stream.consume(bytes.len());
            }
            Ok(None) => return Reason::Done,
            Err(_) => return Reason::Aborted,
        }
    }
}

/// The most bytes of one read from a stream.
const PIECE: usize = 64 * 1024;

pub(crate) fn count_dropped(metrics: Option<&Metrics>, dropped: Dropped) {
    if let Some(metrics) = metrics {
        metrics.datagram_dropped(dropped.name());
    }
}

async fn idle_timeout(passed: &AtomicU64, idle: Option<Duration>) {
    let Some(idle) = idle else {
        return pending().await;
    };
    let mut before = passed.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(idle).await;
        let now = passed.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_holds_what_it_may_and_no_more() {
        let (sender, mut receiver) = queue(3 * (100 + DATAGRAM_COST));
        let datagram = Bytes::from_static(&[1; 100]);
        for _ in 0..3 {
            sender.try_send(datagram.clone()).unwrap();
        }
        assert_eq!(sender.try_send(Bytes::new()), Err(Dropped::Queue));
        assert_eq!(receiver.datagrams.try_recv().unwrap().datagram, datagram);
        sender.try_send(Bytes::new()).unwrap();
        assert_eq!(sender.try_send(datagram), Err(Dropped::Queue));
        drop(receiver);
        assert_eq!(sender.try_send(Bytes::new()), Err(Dropped::Stream));
    }
}
