//! How many connections to each target were released, and of each listener: what a guard knows of
//! those that no record tells of.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::PerCpuHashMap;
use aya_ebpf::macros::btf_map;
use tracer_abi::counter::Counter;
use tracer_abi::facts::fact;
use tracer_abi::limits::RELEASES_MAX;
use tracer_abi::release_key::ReleaseKey;

use crate::counters::{add_to, count};
use crate::socket::SocketRef;

/// Allocated at start, where it is wanted.
#[btf_map]
static RELEASES: PerCpuHashMap<ReleaseKey, u64, { RELEASES_MAX as usize }> = PerCpuHashMap::new();

/// Counts a release that no record tells of.
#[inline(always)]
pub(crate) fn count_release(socket: SocketRef) {
    let remote_port = socket.remote_port();
    if remote_port == 0 {
        return;
    }
    let is_dialed = socket.flags() & fact::DIALED != 0;
    let key = if is_dialed {
        ReleaseKey {
            remote: socket.remote(),
            remote_port,
            local_port: 0,
            family: socket.family(),
            reserved: 0,
        }
    } else {
        ReleaseKey {
            remote: [0; 16],
            remote_port: 0,
            local_port: socket.local_port(),
            family: socket.family(),
            reserved: 0,
        }
    };
    if add(&key) {
        return;
    }
    // Another CPU may be quicker.
    if RELEASES.insert(key, 1, BPF_NOEXIST.into()).is_err() && !add(&key) {
        count(Counter::ReleasedElsewhere);
    }
}

#[inline(always)]
fn add(key: &ReleaseKey) -> bool {
    let at = RELEASES.get_ptr_mut(key);
    add_to(at, 1);
    at.is_some()
}
