//! Values that several tests start from.

use tracer_abi::annotation::Owner;
use tracer_abi::facts::{AF_INET, Ends, Facts, IPPROTO_TCP, fact};

pub(super) const NO_ENDS: Ends = Ends {
    own_ns: 0,
    session_ns: 0,
};

pub(super) fn facts(id: u64) -> Facts {
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
