//! The ring: news for user space. A lost record costs a timestamp, never the verdict.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use aya_ebpf::macros::btf_map;
use tracer_abi::annotation::Owner;
use tracer_abi::record::{
    BoundEvent, Counter, Ends, Event, Facts, RING_BYTES, Socket, SocketEvent,
};

use crate::storage::count;

#[btf_map]
static EVENTS: RingBuf<BoundEvent, { RING_BYTES as usize }> = RingBuf::new();

/// A wake-up costs ten times the record, so user space drains on a timer and is woken only when the ring is half full.
#[inline(always)]
fn wake_up() -> u32 {
    // SAFETY: the map is ours.
    let waiting = unsafe {
        bpf_ringbuf_query(
            (&raw const EVENTS).cast_mut().cast(),
            BPF_RB_AVAIL_DATA.into(),
        )
    };
    if waiting > u64::from(RING_BYTES / 2) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    }
}

/// Puts a record into the ring.
#[inline(always)]
fn put<T: 'static>(fill: impl FnOnce(*mut T)) {
    match EVENTS.reserve_untyped::<T>(0) {
        Some(mut entry) => {
            fill(entry.as_mut_ptr());
            entry.submit(wake_up().into());
            count(Counter::Events);
        }
        None => count(Counter::RingFailures),
    }
}

/// An event about no socket.
#[inline(always)]
pub(crate) fn bare(event: Event) {
    put::<Event>(|to| {
        // SAFETY: `to` is ring memory of this size, aligned to eight bytes.
        unsafe { to.write(event) }
    });
}

/// An event about a socket.
#[inline(always)]
pub(crate) fn about(event: Event, facts: &Facts) {
    put::<SocketEvent>(|to| {
        // SAFETY: as in `bare`.
        unsafe {
            (&raw mut (*to).event).write(event);
            (&raw mut (*to).facts).write(*facts);
        }
    });
}

/// A BIND, with the label.
#[inline(always)]
pub(crate) fn bound(event: Event, socket: &Socket) {
    put::<BoundEvent>(|to| {
        // SAFETY: as in `bare`.
        unsafe {
            (&raw mut (*to).event).write(event);
            (&raw mut (*to).socket).write(*socket);
        }
    });
}

/// The head of an event that happened now in the context of nobody in particular.
#[inline(always)]
pub(crate) fn event(kind: u32, at_ns: u64) -> Event {
    Event {
        kind,
        flags: 0,
        at_ns,
        tgid: 0,
        detail: 0,
        former: Owner::PRESENT,
        ends: Ends {
            own_ns: 0,
            session_ns: 0,
        },
        comm: [0; 16],
    }
}
