//! How a stream waits for the bytes a second of its agent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Sleep, sleep};

use crate::session::stream::reference::StreamRef;

/// The wait of one direction for the bytes a second of its agent.
pub(super) type Pause = Option<Pin<Box<Sleep>>>;

impl StreamRef {
    /// Returns when the direction that waits in `pause` may carry more.
    pub(super) fn poll_pace(&self, pause: &mut Pause, cx: &mut Context<'_>) -> Poll<()> {
        let Some(throttle) = self.shared.throttle.get() else {
            return Poll::Ready(());
        };
        loop {
            if let Some(sleep) = pause {
                ready!(sleep.as_mut().poll(cx));
                *pause = None;
            }
            let wait = throttle.wait();
            if wait.is_zero() {
                return Poll::Ready(());
            }
            self.shared.metrics.throttled(wait);
            *pause = Some(Box::pin(sleep(wait)));
        }
    }

    /// Counts bytes that were carried in either direction.
    pub(super) fn carried(&self, bytes: usize) {
        if let Some(throttle) = self.shared.throttle.get() {
            throttle.carried(bytes);
        }
    }
}
