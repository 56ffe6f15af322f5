//! The rings: news for user space. A lost record costs a timestamp, never the verdict.
//!
//! Violations have a ring of their own, so that no flood of ordinary news can drown the evidence.

use core::ptr;

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use aya_ebpf::macros::btf_map;
use tracer_abi::annotation::Owner;
use tracer_abi::record::{
    self, BoundEvent, BriefEvent, CASES_BYTES, Counter, Ends, Event, Facts, Head, RING_BYTES,
    ReleaseEvent, Socket, SocketEvent,
};

use crate::storage::count;

#[btf_map]
static EVENTS: RingBuf<BoundEvent, { RING_BYTES as usize }> = RingBuf::new();

#[btf_map]
static CASES: RingBuf<BoundEvent, { CASES_BYTES as usize }> = RingBuf::new();

/// Set before load: the bytes in `EVENTS` from which on its reader is woken.
#[unsafe(no_mangle)]
static WAKE_UP_BYTES: u64 = RING_BYTES as u64 / 2;

/// Where a record goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// The ring for everything that happens.
    Events,
    /// The ring for violations.
    Cases,
}

impl To {
    /// Returns where a record of a socket goes that was released, or bound anew, too late or in time.
    #[inline(always)]
    pub(crate) fn of(late: bool) -> Self {
        if late { Self::Cases } else { Self::Events }
    }
}

/// Whether the reader is to be woken for a record.
#[derive(Clone, Copy)]
enum WakeUp {
    /// When the ring is half full.
    IfHalfFull,
    /// Not for this one: the records of births come as often, and see to it.
    Never,
}

/// A wake-up costs ten times the record, so user space drains on a timer and is woken only when the ring is half full.
#[inline(always)]
fn flags(wake_up: WakeUp) -> u32 {
    if matches!(wake_up, WakeUp::Never) {
        return BPF_RB_NO_WAKEUP;
    }
    // SAFETY: the map is ours.
    let waiting = unsafe {
        bpf_ringbuf_query(
            (&raw const EVENTS).cast_mut().cast(),
            BPF_RB_AVAIL_DATA.into(),
        )
    };
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    if waiting > unsafe { ptr::read_volatile(&raw const WAKE_UP_BYTES) } {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    }
}

/// Puts a record into a ring.
#[inline(always)]
fn put<T: 'static>(to: To, wake_up: WakeUp, fill: impl FnOnce(*mut T)) {
    let entry = match to {
        To::Events => EVENTS.reserve_untyped::<T>(0),
        To::Cases => CASES.reserve_untyped::<T>(0),
    };
    match entry {
        Some(mut entry) => {
            fill(entry.as_mut_ptr());
            entry.submit(flags(wake_up).into());
        }
        None if to == To::Cases => count(Counter::CaseFailures),
        None => count(Counter::RingFailures),
    }
}

/// An event about no socket.
#[inline(always)]
pub(crate) fn bare(to: To, event: Event) {
    put::<Event>(to, WakeUp::IfHalfFull, |to| {
        // SAFETY: `to` is ring memory of this size, aligned to eight bytes.
        unsafe { to.write(event) }
    });
}

/// An event with the few facts of a socket.
#[inline(always)]
pub(crate) fn brief(kind: u32, at_ns: u64, facts: &Facts) {
    let wake_up = match kind {
        record::CREATED | record::ARRIVED => WakeUp::IfHalfFull,
        _ => WakeUp::Never,
    };
    put::<BriefEvent>(To::Events, wake_up, |to| {
        // SAFETY: as in `bare`.
        unsafe {
            (&raw mut (*to).head).write(head(kind, at_ns));
            (&raw mut (*to).brief).write(facts.into());
        }
    });
}

/// A release in time.
#[inline(always)]
pub(crate) fn release(at_ns: u64, facts: &Facts, over_ns: u64) {
    put::<ReleaseEvent>(To::Events, WakeUp::Never, |to| {
        // SAFETY: as in `bare`.
        unsafe {
            to.write(ReleaseEvent {
                head: head(record::RELEASED, at_ns),
                brief: facts.into(),
                over_ns,
                remote: facts.remote,
                remote_port: facts.remote_port,
                reserved: [0; 3],
            });
        }
    });
}

/// An event about a socket.
#[inline(always)]
pub(crate) fn about(to: To, event: Event, facts: &Facts) {
    put::<SocketEvent>(to, WakeUp::IfHalfFull, |to| {
        // SAFETY: as in `bare`.
        unsafe {
            (&raw mut (*to).event).write(event);
            (&raw mut (*to).facts).write(*facts);
        }
    });
}

/// A BIND, with the label.
#[inline(always)]
pub(crate) fn bound(to: To, event: Event, former_bound_ns: u64, socket: &Socket) {
    put::<BoundEvent>(to, WakeUp::IfHalfFull, |to| {
        // SAFETY: as in `bare`.
        unsafe {
            (&raw mut (*to).event).write(event);
            (&raw mut (*to).former_bound_ns).write(former_bound_ns);
            (&raw mut (*to).socket).write(*socket);
        }
    });
}

#[inline(always)]
fn head(kind: u32, at_ns: u64) -> Head {
    Head {
        kind,
        flags: 0,
        at_ns,
    }
}

/// An event that happened now, done by nobody yet.
#[inline(always)]
pub(crate) fn event(kind: u32, at_ns: u64) -> Event {
    Event {
        head: head(kind, at_ns),
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
