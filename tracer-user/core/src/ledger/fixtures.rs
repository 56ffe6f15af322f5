//! Values that several tests start from.

use tracer_abi::annotation::Owner;
use tracer_abi::facts::{AF_INET, Ends, Facts, IPPROTO_TCP, fact};
use tracer_abi::sighting::{KNOWN, Sighting, TCP_READ};

pub(super) const NO_ENDS: Ends = Ends {
    own_ns: 0,
    session_ns: 0,
};

pub(crate) fn facts(id: u64) -> Facts {
    Facts {
        id,
        cookie: id + 1000,
        born_ns: 100,
        held_ns: 100,
        bound_ns: 0,
        peer_done_ns: 0,
        dead_ns: 0,
        owner: Owner::PRESENT,
        bytes_received: 0,
        bytes_acked: 0,
        opener: 42,
        flags: fact::HELD,
        family: AF_INET,
        protocol: IPPROTO_TCP,
        role: 0,
        local_port: 0,
        remote_port: 0,
        state: 0,
        label_len: 0,
        local: [0; 16],
        remote: [0; 16],
        comm: [0; 16],
    }
}

/// A descriptor of a connection that is established.
pub(crate) fn sighting() -> Sighting {
    Sighting {
        tgid: 42,
        fd: 3,
        flags: KNOWN | TCP_READ,
        state: 1,
        family: AF_INET,
        protocol: IPPROTO_TCP,
        local_port: 0,
        reserved: 0,
        ends: NO_ENDS,
        bytes_received: 0,
        bytes_acked: 0,
        unread: 0,
        unsent: 0,
        sent_ns: 0,
        cookie: 1001,
    }
}
