//! The idle limit of streams: those of visitors, of the HTTP front, of peers and of the program.

use std::time::Duration;

use tunnel_proto::Time;
use tunnel_proto::mux::Reason;
use tunnel_proto::wire::frame::StreamId;

use crate::metrics::Timeout;
use crate::session::{Session, Slot, State};

/// What was last seen to have moved on a stream.
#[derive(Debug)]
pub(super) struct Moved {
    bytes: u64,
    at: Time,
}

impl Moved {
    pub(super) const fn new(now: Time) -> Self {
        Self { bytes: 0, at: now }
    }
}

impl Session {
    /// Resets streams on which nothing has moved for `limit`, until the session is over. It may
    /// take half as long again. Flows of datagrams have a limit of their own.
    pub(crate) async fn reset_idle(self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return;
        };
        let step = (limit / 4).max(Duration::from_millis(1));
        loop {
            tokio::select! {
                biased;
                () = self.shared.over.cancelled() => return,
                () = tokio::time::sleep(step) => {}
            }
            let now = self.shared.clock.now();
            let mut state = self.shared.lock();
            for stream in idle(&mut state, now, limit) {
                self.shared.metrics.timed_out(Timeout::Idle);
                state.mux.reset(stream, Reason::TimedOut);
            }
            self.shared.settle(&mut state);
        }
    }
}

/// Returns the open streams on which nothing has moved for `limit`.
fn idle(state: &mut State, now: Time, limit: Duration) -> Vec<StreamId> {
    let streams = state.mux.stats(usize::MAX).sample;
    let is_idle = |stream: &tunnel_proto::mux::StreamStats| {
        let Some(slot) = state.slots.get_mut(&stream.stream) else {
            return false;
        };
        let bytes = stream.written.saturating_add(stream.read);
        // An open has a timeout of its own.
        if slot.moved.bytes != bytes || !state.mux.is_open(stream.stream) {
            slot.moved = Moved { bytes, at: now };
            return false;
        }
        !carries_datagrams(slot) && now.saturating_sub(slot.moved.at) >= limit
    };
    streams
        .into_iter()
        .filter(is_idle)
        .map(|stream| stream.stream)
        .collect()
}

fn carries_datagrams(slot: &Slot) -> bool {
    slot.target.starts_with(b"udp/")
}
