//! Payload bytes, from the counters of TCP.

use tracer_abi::facts::{Facts, fact};
use tracer_abi::sighting::{Sighting, TCP_READ};

use super::tcp::{TCP_CLOSE, TCP_SYN_SENT};

/// Payload bytes, in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Payload {
    /// Received.
    pub received: u64,
    /// Sent and acknowledged.
    pub acknowledged: u64,
}

/// Returns the payload. TCP's own counters count the SYN and each FIN as a byte.
pub(super) fn payload(facts: &Facts, received: u64, acked: u64) -> Payload {
    let marked = |bit| u64::from(facts.flags & bit != 0);
    Payload {
        received: received.saturating_sub(marked(fact::PEER_FIN)),
        acknowledged: acked
            .saturating_sub(marked(fact::DIALED))
            .saturating_sub(marked(fact::OWN_FIN)),
    }
}

/// Returns the payload as the witness read it; `None` for a socket without byte counters.
pub(super) fn payload_seen(facts: &Facts, sighting: &Sighting) -> Option<Payload> {
    (sighting.flags & TCP_READ != 0)
        .then(|| payload(facts, sighting.bytes_received, sighting.bytes_acked))
}

/// Whether TCP has reset its counters and dropped its queues: by connect(AF_UNSPEC), or when a
/// connect failed (`tcp_disconnect`). On a socket that was ever connected the SYN is acknowledged.
pub(super) fn is_reset(facts: &Facts, sighting: &Sighting) -> bool {
    sighting.state == u32::from(TCP_CLOSE)
        && facts.flags & fact::DIALED != 0
        && sighting.bytes_acked == 0
}

/// Returns the bytes that wait to be read. A FIN in the queue counts as one.
pub(super) fn unread(facts: &Facts, sighting: &Sighting) -> u32 {
    let fin = u32::from(facts.flags & fact::PEER_FIN != 0);
    sighting.unread.saturating_sub(fin)
}

/// Returns the bytes that were written and not acknowledged. A SYN or a FIN in flight counts as
/// one.
pub(super) fn unsent(sighting: &Sighting) -> u32 {
    const FIN_WAIT1: u32 = 4;
    const LAST_ACK: u32 = 9;
    const CLOSING: u32 = 11;
    let in_flight = sighting.state == u32::from(TCP_SYN_SENT)
        || matches!(sighting.state, FIN_WAIT1 | LAST_ACK | CLOSING);
    sighting.unsent.saturating_sub(u32::from(in_flight))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{facts, sighting};
    use super::*;

    #[test]
    fn syns_and_fins_are_no_payload() {
        let mut facts = facts(1);
        assert_eq!(payload(&facts, 5, 3).received, 5);
        facts.flags |= fact::DIALED | fact::PEER_FIN | fact::OWN_FIN;
        let seen = payload(&facts, 6, 5);
        assert_eq!((seen.received, seen.acknowledged), (5, 3));
    }

    #[test]
    fn counters_after_a_disconnect_differ_from_those_after_a_reset() {
        let mut sighting = Sighting {
            state: TCP_CLOSE.into(),
            unread: 1,
            unsent: 65485,
            ..sighting()
        };
        let mut facts = facts(1);
        facts.flags |= fact::DIALED;
        assert!(is_reset(&facts, &sighting));
        sighting.bytes_acked = 1;
        assert!(!is_reset(&facts, &sighting), "its SYN was acknowledged");
        assert_eq!((unread(&facts, &sighting), unsent(&sighting)), (1, 65485));
        facts.flags |= fact::PEER_FIN;
        sighting.state = 9;
        assert_eq!((unread(&facts, &sighting), unsent(&sighting)), (0, 65484));
        sighting.bytes_acked = 0;
        sighting.state = 2;
        assert!(!is_reset(&facts, &sighting), "it is still connecting");
    }
}
