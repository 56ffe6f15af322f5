//! The rings: events for user space. A lost record costs a timestamp, never the verdict.
//!
//! Violations have a ring of their own, so that no flood of ordinary events can drown the evidence.

use core::ptr;

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use aya_ebpf::macros::btf_map;
use tracer_abi::annotation::Owner;
use tracer_abi::counter::Counter;
use tracer_abi::facts::{Ends, fact};
use tracer_abi::limits::{RING_BYTES, VIOLATIONS_BYTES};
use tracer_abi::record::{
    self, BoundEvent, BriefEvent, EndedEvent, Head, LeftEvent, OverstayEvent, ReleaseEvent,
};

use crate::counters::count;
use crate::kernel::{self, Task};
use crate::socket::SocketRef;

#[btf_map]
static EVENTS: RingBuf<OverstayEvent, { RING_BYTES as usize }> = RingBuf::new();

#[btf_map]
static VIOLATIONS: RingBuf<OverstayEvent, { VIOLATIONS_BYTES as usize }> = RingBuf::new();

/// Set before load: the reader of `EVENTS` is woken when more bytes than this wait in it.
#[unsafe(no_mangle)]
static WAKE_UP_BYTES: u64 = RING_BYTES as u64 / 2;

/// Set before load: whether records tell of every socket. Otherwise they tell of those that are
/// annotated or were there before, and of violations; walks meet the others.
#[unsafe(no_mangle)]
static ALL_RECORDS: u32 = 1;

/// One in so many births, BINDs and ENDs, a power of two, checks whether the ring is half full.
const CHECK_EVERY: u64 = 32;

/// Where a record goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// The ring for everything that happens.
    Events,
    /// The ring for violations.
    Violations,
}

/// Whether the reader is to be woken for a record.
#[derive(Clone, Copy)]
enum WakeUp {
    /// When the ring is half full.
    IfHalfFull,
    /// Not for this one: others come as often, and check.
    Never,
}

impl WakeUp {
    /// For the record of a socket or a stream of this number.
    #[inline(always)]
    fn now_and_then(number: u64) -> Self {
        if number.is_multiple_of(CHECK_EVERY) {
            Self::IfHalfFull
        } else {
            Self::Never
        }
    }
}

/// A wake-up costs ten times the record, so user space drains on a timer and is woken only when the
/// ring is half full.
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
        To::Violations => VIOLATIONS.reserve_untyped::<T>(0),
    };
    match entry {
        Some(mut entry) => {
            fill(entry.as_mut_ptr());
            entry.submit(flags(wake_up).into());
        }
        None if to == To::Violations => count(Counter::ViolationFailures),
        None => count(Counter::RingFailures),
    }
}

/// Whether records tell of what happens to a socket that breaks no rule.
#[inline(always)]
pub(crate) fn is_told(socket: SocketRef) -> bool {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    let all_records = unsafe { ptr::read_volatile(&raw const ALL_RECORDS) } != 0;
    all_records || socket.flags() & (fact::BOUND | fact::ADOPTED) != 0
}

/// An event with the few facts of a socket.
#[inline(always)]
pub(crate) fn brief(kind: u32, at_ns: u64, socket: SocketRef) {
    if !is_told(socket) {
        return;
    }
    let wake_up = match kind {
        record::CREATED | record::ARRIVED => WakeUp::now_and_then(socket.id()),
        _ => WakeUp::Never,
    };
    put::<BriefEvent>(To::Events, wake_up, |to| {
        // SAFETY: `to` is ring memory of this size, aligned to eight bytes.
        unsafe {
            (&raw mut (*to).head).write(head(kind, at_ns));
            (&raw mut (*to).brief).write(socket.brief());
        }
    });
}

/// A BIND.
#[inline(always)]
pub(crate) fn bound(tgid: u32, socket: SocketRef) {
    let owner = socket.owner();
    put::<BoundEvent>(To::Events, WakeUp::now_and_then(owner.stream), |to| {
        // SAFETY: as in `brief`.
        unsafe {
            to.write(BoundEvent {
                head: head(record::BOUND, socket.bound_ns()),
                brief: socket.brief(),
                owner,
                tgid,
                role: socket.role(),
                state: socket.state(),
            });
        }
    });
}

/// The first END of an owner.
#[inline(always)]
pub(crate) fn ended(at_ns: u64, owner: Owner, reason: u16) {
    put::<EndedEvent>(To::Events, WakeUp::now_and_then(owner.stream), |to| {
        // SAFETY: as in `brief`.
        unsafe {
            to.write(EndedEvent {
                head: head(record::ENDED, at_ns),
                owner,
                tgid: kernel::tgid(),
                reason: reason.into(),
            });
        }
    });
}

/// A release in time, of a socket that records tell of.
#[inline(always)]
pub(crate) fn release(at_ns: u64, socket: SocketRef, over_ns: u64) {
    put::<ReleaseEvent>(To::Events, WakeUp::Never, |to| {
        // SAFETY: as in `brief`.
        unsafe {
            to.write(ReleaseEvent {
                head: head(record::RELEASED, at_ns),
                brief: socket.brief(),
                over_ns,
                remote: socket.remote(),
                remote_port: socket.remote_port(),
                local_port: socket.local_port(),
                reserved: 0,
            });
        }
    });
}

/// What the current process did to a socket that stayed too long, or until it exited.
#[inline(always)]
pub(crate) fn overstay(to: To, head: Head, tgid: u32, socket: SocketRef, ends: Ends) {
    put::<OverstayEvent>(to, WakeUp::IfHalfFull, |to| {
        // SAFETY: as in `brief`.
        unsafe {
            (&raw mut (*to).head).write(head);
            (&raw mut (*to).tgid).write(tgid);
            (&raw mut (*to).reserved).write(0);
            (&raw mut (*to).ends).write(ends);
            write_comm(&raw mut (*to).comm, Task::current());
            socket.copy_to(&raw mut (*to).socket);
        }
    });
}

/// What is known of a socket that broke a rule until now, as it begins anew.
#[inline(always)]
pub(crate) fn renewed(at_ns: u64, flags: u32, tgid: u32, socket: SocketRef, ends: Ends) {
    count(Counter::Late);
    let mut head = head(record::RENEWED, at_ns);
    head.flags = flags;
    overstay(To::Violations, head, tgid, socket, ends);
}

/// A process of the audit that left its cgroup.
#[inline(always)]
pub(crate) fn left(at_ns: u64, task: Task) {
    put::<LeftEvent>(To::Violations, WakeUp::IfHalfFull, |to| {
        // SAFETY: as in `brief`.
        unsafe {
            (&raw mut (*to).head).write(head(record::LEFT, at_ns));
            (&raw mut (*to).tgid).write(task.tgid());
            (&raw mut (*to).reserved).write(0);
            write_comm(&raw mut (*to).comm, task);
        }
    });
}

/// # Safety
///
/// `to` must be memory of a ring, aligned to eight bytes.
#[inline(always)]
unsafe fn write_comm(to: *mut [u8; 16], task: Task) {
    // SAFETY: the caller's promise.
    unsafe { to.cast::<[u64; 2]>().write(task.comm()) };
}

#[inline(always)]
pub(crate) fn head(kind: u32, at_ns: u64) -> Head {
    Head {
        kind,
        flags: 0,
        at_ns,
    }
}
