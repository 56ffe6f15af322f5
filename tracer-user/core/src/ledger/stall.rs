//! Bytes that wait, and connects, without progress.

use tracer_abi::facts::Facts;
use tracer_abi::sighting::{Sighting, TCP_READ};

use super::payload::{unread, unsent};
use super::tcp::{TCP_CLOSE, TCP_SYN_SENT};

/// What waits on one socket, as walks met it.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// Bytes to be acknowledged, with the number of those that are.
    sending: Option<Wait>,
    /// Bytes to be read, with the number of those that are.
    reading: Option<Wait>,
    connecting: Option<Wait>,
}

/// Something waits since `since_ns`, and this far it had come.
#[derive(Clone, Copy, Debug)]
struct Wait {
    progress: u64,
    since_ns: u64,
}

impl Stall {
    /// Adds what a walk at `now_ns` sees. Returns since when something waits without progress.
    pub(super) fn observe(
        &mut self,
        facts: &Facts,
        sighting: &Sighting,
        now_ns: u64,
    ) -> Option<u64> {
        let is_tcp = sighting.flags & TCP_READ != 0 && sighting.state != u32::from(TCP_CLOSE);
        let unread = unread(facts, sighting);
        let read = sighting.bytes_received.saturating_sub(unread.into());
        let is_connecting = sighting.state == u32::from(TCP_SYN_SENT);
        advance(
            &mut self.sending,
            is_tcp && unsent(sighting) > 0,
            sighting.bytes_acked,
            now_ns,
        );
        advance(&mut self.reading, is_tcp && unread > 0, read, now_ns);
        advance(&mut self.connecting, is_tcp && is_connecting, 0, now_ns);
        let waits = [self.sending, self.reading, self.connecting];
        waits.into_iter().flatten().map(|wait| wait.since_ns).min()
    }
}

fn advance(wait: &mut Option<Wait>, is_waiting: bool, progress: u64, now_ns: u64) {
    *wait = match *wait {
        _ if !is_waiting => None,
        Some(wait) if wait.progress == progress => Some(wait),
        Some(_) | None => Some(Wait {
            progress,
            since_ns: now_ns,
        }),
    };
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{facts, sighting};
    use super::*;

    #[test]
    fn the_clock_runs_while_bytes_wait_and_none_is_acknowledged() {
        let (facts, mut sighting, mut stall) = (facts(1), sighting(), Stall::default());
        assert_eq!(stall.observe(&facts, &sighting, 10), None);
        sighting.unsent = 5;
        sighting.bytes_acked = 100;
        assert_eq!(stall.observe(&facts, &sighting, 20), Some(20));
        sighting.unsent = 9;
        assert_eq!(stall.observe(&facts, &sighting, 30), Some(20));
        sighting.bytes_acked = 101;
        assert_eq!(stall.observe(&facts, &sighting, 40), Some(40));
        sighting.unsent = 0;
        assert_eq!(stall.observe(&facts, &sighting, 50), None);
    }

    #[test]
    fn bytes_that_come_in_are_no_progress_while_none_is_read() {
        let (facts, mut sighting, mut stall) = (facts(1), sighting(), Stall::default());
        sighting.bytes_received = 50;
        sighting.unread = 40;
        assert_eq!(stall.observe(&facts, &sighting, 10), Some(10));
        sighting.bytes_received = 60;
        sighting.unread = 50;
        assert_eq!(stall.observe(&facts, &sighting, 20), Some(10));
        sighting.unread = 49;
        assert_eq!(stall.observe(&facts, &sighting, 30), Some(30));
    }

    #[test]
    fn a_connect_without_an_answer_waits_and_a_dead_socket_does_not() {
        let (facts, mut sighting, mut stall) = (facts(1), sighting(), Stall::default());
        sighting.state = TCP_SYN_SENT.into();
        sighting.unsent = 1;
        assert_eq!(stall.observe(&facts, &sighting, 10), Some(10));
        assert_eq!(stall.observe(&facts, &sighting, 20), Some(10));
        sighting.state = TCP_CLOSE.into();
        sighting.unsent = 77;
        assert_eq!(stall.observe(&facts, &sighting, 30), None);
    }
}
