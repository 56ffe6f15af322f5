//! The owners whose requests are over.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use tracer_abi::annotation::Owner;
use tracer_abi::counter::Counter;
use tracer_abi::facts::Ends;
use tracer_abi::limits::ENDS_MAX;

use crate::counters::count;
use crate::socket::SocketRef;

/// When each ended. Allocated at start: entries that an END allocates cost it three times as much.
#[btf_map]
static ENDS: HashMap<Owner, u64, { ENDS_MAX as usize }> = HashMap::new();

/// `-EEXIST` (asm-generic/errno-base.h).
const EEXIST: i32 = -17;

/// Remembers that `owner`'s request is over; `true` when it was not known yet.
#[inline(always)]
pub(crate) fn end(owner: Owner, now_ns: u64) -> bool {
    match ENDS.insert(owner, now_ns, BPF_NOEXIST.into()) {
        Ok(()) => {
            count(Counter::Ended);
            true
        }
        Err(EEXIST) => false,
        Err(_) => {
            count(Counter::EndFailures);
            true
        }
    }
}

#[inline(always)]
fn ended(owner: Owner) -> u64 {
    // SAFETY: an aligned word, written before it can be found. User space removes entries, whose
    // memory is used again, only when no socket needs them.
    ENDS.get_ptr(owner)
        .map_or(0, |ended| unsafe { ended.read_volatile() })
}

/// Returns when the present owner of the socket and its session ended.
#[inline(always)]
pub(crate) fn ends(socket: SocketRef) -> Ends {
    if socket.bound_ns() == 0 {
        return Ends {
            own_ns: 0,
            session_ns: 0,
        };
    }
    let owner = socket.owner();
    let own_ns = ended(owner);
    let session_ns = if owner.stream == 0 {
        0
    } else {
        ended(owner.whole_session())
    };
    Ends { own_ns, session_ns }
}
