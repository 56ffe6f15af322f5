//! Joins two streams of two sessions.

use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{FusedFuture, join};
use tokio::time::timeout;
use tunnel_proto::mux::{By, Ending, Reason};

use crate::relay::splice::FLUSH_GRACE;
use crate::session::{ReceiveStream, SendStream, Stream};

/// How long one stream may take to finish after the other has finished.
const FINISH_GRACE: Duration = Duration::from_secs(5);

/// Carries bytes both ways, at most `piece` at once, until both streams have ended, and returns how
/// `near` ended. Between servers there is no half-close: when `near` has finished, nobody reads
/// what `far` still sends.
pub(crate) async fn relay(near: Stream, far: Stream, piece: usize) -> Ending {
    let (near_watch, far_watch) = (near.watch(), far.watch());
    let (near_send, near_receive) = near.split();
    let (far_send, far_receive) = far.split();
    let outward = pin!(carry(near_receive, far_send, piece).fuse());
    let inward = pin!(carry(far_receive, near_send, piece).fuse());
    let (mut outward, mut inward): (Carrying<'_>, Carrying<'_>) = (outward, inward);
    let (ending, other, rest, back) = loop {
        tokio::select! {
            biased;
            ending = near_watch.ended() => break (ending, &far_watch, outward, inward),
            ending = far_watch.ended() => break (ending, &near_watch, inward, outward),
            () = outward.as_mut(), if !outward.is_terminated() => {}
            () = inward.as_mut(), if !inward.is_terminated() => {}
        }
    };
    let (grace, reason) = match ending {
        Ending::Finished => (FINISH_GRACE, Reason::Cancelled),
        Ending::Reset(reason, _) => (FLUSH_GRACE, reason),
    };
    let follow = async {
        match ending {
            Ending::Finished => {
                tokio::select! {
                    biased;
                    _ = other.ended() => {}
                    _ = join(rest, back) => {}
                }
            }
            // Bytes that were sent before a socket broke are passed on.
            Ending::Reset(Reason::Aborted, By::Peer) if !rest.is_terminated() => {
                rest.await;
                other.abort(reason);
            }
            Ending::Reset(..) => other.abort(reason),
        }
        other.ended().await
    };
    if timeout(grace, follow).await.is_err() {
        other.reset(reason);
    }
    near_watch.ended().await
}

/// The future of one direction.
type Carrying<'a> = Pin<&'a mut (dyn FusedFuture<Output = ()> + Send)>;

/// Carries one direction until it or a stream ends. Bytes that the receiver no longer wants are
/// dropped, so that the sender can finish.
async fn carry(mut from: ReceiveStream, mut to: SendStream, piece: usize) {
    let mut wanted = true;
    while let Ok(data) = from.read(piece).await {
        let Some(data) = data else {
            // A stream that has ended cannot be finished, and need not be.
            let _ = to.finish();
            from.deliver();
            return;
        };
        let length = data.len();
        wanted = wanted && to.write(data).await.is_ok();
        from.consume(length);
    }
}
