//! The maps: what is known of each socket, which owners ended, and the counters.

mod places;

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};
use core::ptr::{self, NonNull};

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::btf_maps::{HashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_sk_storage_get,
};
use aya_ebpf::macros::btf_map;
use tracer_abi::annotation::{Owner, Role};
use tracer_abi::counter::Counter;
use tracer_abi::facts::{Ends, Facts, IPPROTO_TCP, Socket, fact};
use tracer_abi::limits::{ANNOTATORS_MAX, ENDS_MAX, MEMBERS_MAX};
use tracer_abi::record::{self, ANNOTATES};

use crate::emit;
use crate::kernel;

pub(crate) use places::free;

/// What is known of the sockets that have no place.
#[btf_map]
static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// Its entries are allocated at start: an END would pay for its own, and three times as much.
#[btf_map]
static ENDS: HashMap<Owner, u64, { ENDS_MAX as usize }> = HashMap::new();

#[btf_map]
static ANNOTATORS: HashMap<
    u32,
    Annotator,
    { ANNOTATORS_MAX as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// The processes of the audit, by their numbers in the initial PID namespace.
#[btf_map]
static MEMBERS: HashMap<u32, u8, { MEMBERS_MAX as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The life of a process that annotates: others may have its number before and after it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Annotator {
    /// When it was started.
    started_ns: u64,
    /// When it exited or became another program; 0 while it does not.
    gone_ns: u64,
}

/// Whether [`ANNOTATORS`] has an entry: most programs do not annotate, and a load is cheaper than a lookup.
static mut ANYBODY_ANNOTATES: u32 = 0;

#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static NEXT_ID: PerCpuArray<u64, 1> = PerCpuArray::new();

/// `-EEXIST` (asm-generic/errno-base.h).
const EEXIST: i32 = -17;

#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds one. Atomic although the slot is this CPU's own: a softirq may come between the load and the store.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    add(counter, 1);
}

/// Takes one away again.
#[inline(always)]
pub(crate) fn discount(counter: Counter) {
    add(counter, u64::MAX);
}

#[inline(always)]
fn add(counter: Counter, value: u64) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the verifier has checked the lookup; the slot is eight bytes and aligned.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(slot, value) };
    }
}

/// Looks up what is known of `sk`, whose cookie is `cookie`.
///
/// `sk` must be what the verifier accepts for `bpf_sk_storage_get` in the calling program.
#[inline(always)]
pub(crate) fn lookup(sk: *mut c_void, cookie: impl FnOnce() -> u64) -> Option<NonNull<Socket>> {
    places::find(sk, cookie).or_else(|| get(sk, 0))
}

/// Gives a socket that no hook has seen before an empty record, whose id is 0.
#[inline(always)]
pub(crate) fn create(sk: *mut c_void) -> Option<NonNull<Socket>> {
    let made = get(sk, BPF_SK_STORAGE_GET_F_CREATE.into());
    if made.is_none() {
        count(Counter::StorageFailures);
    }
    made
}

/// The same for a socket whose birth this is: it gets a place, if that is free.
#[inline(always)]
pub(crate) fn create_at_birth(sk: *mut c_void, cookie: u64) -> Option<NonNull<Socket>> {
    places::claim(sk, cookie).or_else(|| {
        count(Counter::Unplaced);
        create(sk)
    })
}

/// Gives a socket its record that no hook saw as it was accepted, as MPTCP makes them, and tells of it.
#[inline(always)]
pub(crate) fn met_accepted(sk: *mut c_void, family: u16, protocol: u16) -> Option<NonNull<Socket>> {
    let socket = create(sk)?;
    // SAFETY: `socket` comes from the storage; whoever has the number 0 is known to nobody else.
    let facts = unsafe { &mut (*socket.as_ptr()).facts };
    if facts.id == 0 {
        facts.id = new_id();
        facts.born_ns = now_ns();
        facts.flags = fact::CHILD;
        facts.family = family;
        facts.protocol = protocol;
        held(socket, || facts.born_ns);
        emit::brief(record::ARRIVED, facts.born_ns, facts);
    }
    Some(socket)
}

#[inline(always)]
fn get(sk: *mut c_void, flags: u64) -> Option<NonNull<Socket>> {
    let map = (&raw const SOCKETS).cast_mut();
    // SAFETY: the map is ours; the verifier checks `sk`.
    let found = unsafe { bpf_sk_storage_get(map.cast(), sk, ptr::null_mut(), flags) };
    NonNull::new(found.cast())
}

/// Returns a number that no other socket has: the CPU in the top 16 bits, a count below.
#[inline(always)]
pub(crate) fn new_id() -> u64 {
    let Some(slot) = NEXT_ID.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: as in `count`. Not relaxed: LLVM gives relaxed atomics the instructions that return nothing.
    let count = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(slot, 1) };
    // SAFETY: the helper has no preconditions.
    let cpu = u64::from(unsafe { bpf_get_smp_processor_id() });
    (cpu << 48) | ((count + 1) & ((1 << 48) - 1))
}

/// Sets bits of a socket's flags and returns those it had before.
#[inline(always)]
pub(crate) fn mark(socket: NonNull<Socket>, bits: u32) -> u32 {
    // SAFETY: `socket` comes from the storage; the field is four bytes and aligned. Not relaxed: see `new_id`.
    unsafe {
        let flags = &raw mut (*socket.as_ptr()).facts.flags;
        atomic_or::<u32, u32, { AtomicOrdering::AcqRel }>(flags, bits)
    }
}

/// Notes that a file descriptor for the socket exists. The first time, which it returns, a listener's child counts as accepted.
#[inline(always)]
pub(crate) fn held(socket: NonNull<Socket>, now_ns: impl FnOnce() -> u64) -> bool {
    let before = mark(socket, fact::HELD);
    if before & fact::HELD != 0 {
        return false;
    }
    // SAFETY: `socket` comes from the storage; only whoever set the bit comes here.
    unsafe { (*socket.as_ptr()).facts.held_ns = now_ns() };
    if before & fact::CHILD != 0 {
        count(Counter::Accepted);
    }
    true
}

/// Remembers that the current process annotates.
#[inline(always)]
pub(crate) fn annotates(tgid: u32) {
    if annotator(tgid).is_some_and(|known| known.gone_ns == 0) {
        return;
    }
    let life = Annotator {
        started_ns: kernel::started_ns(),
        gone_ns: 0,
    };
    if ANNOTATORS.insert(tgid, life, 0).is_err() {
        count(Counter::AnnotatorFailures);
    }
    // SAFETY: a static of our own; every store is the same.
    unsafe { (&raw mut ANYBODY_ANNOTATES).write_volatile(1) };
}

#[inline(always)]
fn annotator(tgid: u32) -> Option<Annotator> {
    // SAFETY: the value is copied at once; one that changes meanwhile is of a process that just exits.
    unsafe { ANNOTATORS.get(tgid) }.copied()
}

/// Notes that a process exits or becomes another program: what is opened under its number from now on is not its own.
#[inline(always)]
pub(crate) fn annotates_no_more(tgid: u32) {
    // SAFETY: a static of our own, of a size that is loaded whole.
    if unsafe { (&raw const ANYBODY_ANNOTATES).read_volatile() } == 0 {
        return;
    }
    if let Some(known) = ANNOTATORS.get_ptr_mut(tgid) {
        // SAFETY: the verifier has checked the lookup.
        unsafe {
            if (*known).gone_ns == 0 {
                (*known).gone_ns = now_ns();
            }
        }
    }
}

/// Remembers that a process belongs to the audit.
#[inline(always)]
pub(crate) fn join(tgid: u32) {
    if MEMBERS.insert(tgid, 1, 0).is_err() {
        count(Counter::MemberFailures);
    }
}

/// Forgets a process of the audit.
#[inline(always)]
pub(crate) fn part(tgid: u32) {
    // Most that exit belong to no audit.
    let _ = MEMBERS.remove(tgid);
}

/// Whether a process belongs to the audit.
#[inline(always)]
pub(crate) fn is_member(tgid: u32) -> bool {
    MEMBERS.get_ptr(tgid).is_some()
}

/// Notes the current process, `tgid`, as the opener of a socket that has none.
#[inline(always)]
pub(crate) fn opened_by(facts: &mut Facts, tgid: impl FnOnce() -> u32) {
    if facts.opener != 0 {
        return;
    }
    facts.opener = tgid();
    // SAFETY: the facts are a map's.
    unsafe { kernel::comm(&raw mut facts.comm) };
}

/// Returns [`ANNOTATES`] when the opener of the socket, or `tgid` if that is not known, is a process that annotates.
#[inline(always)]
pub(crate) fn annotates_bit(facts: &Facts, tgid: impl FnOnce() -> u32) -> u32 {
    // SAFETY: a static of our own, of a size that is loaded whole.
    if unsafe { (&raw const ANYBODY_ANNOTATES).read_volatile() } == 0 {
        return 0;
    }
    let who = if facts.opener == 0 {
        tgid()
    } else {
        facts.opener
    };
    let opened_ns = facts.held_ns;
    match annotator(who) {
        Some(life)
            if opened_ns >= life.started_ns && (life.gone_ns == 0 || opened_ns <= life.gone_ns) =>
        {
            ANNOTATES
        }
        Some(_) | None => 0,
    }
}

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
    // SAFETY: an integer, written before it can be found; user space removes entries, whose places are used again, only when nobody
    // needs them.
    unsafe { ENDS.get(owner) }.copied().unwrap_or(0)
}

/// Returns when the present owner of the socket and its session ended.
#[inline(always)]
pub(crate) fn ends(facts: &Facts) -> Ends {
    if facts.bound_ns == 0 {
        return Ends {
            own_ns: 0,
            session_ns: 0,
        };
    }
    let own_ns = ended(facts.owner);
    let session_ns = if facts.owner.stream == 0 {
        0
    } else {
        ended(facts.owner.whole_session())
    };
    Ends { own_ns, session_ns }
}

/// Returns when the request that the socket serves was over, by its own END or its session's; 0 when it is not.
#[inline(always)]
pub(crate) fn over_ns(facts: &Facts, ends: &Ends) -> u64 {
    let end_ns = if ends.own_ns != 0 {
        ends.own_ns
    } else {
        ends.session_ns
    };
    if end_ns == 0 || pooled(facts) {
        return 0;
    }
    // A BIND to an owner that has already ended starts its grace at the BIND.
    end_ns.max(facts.bound_ns)
}

/// Whether an END of the socket's owner or session is longer ago than grace for a socket that is still open at `now_ns`.
#[inline(always)]
fn outlived(facts: &Facts, ends: &Ends, now_ns: u64) -> bool {
    if pooled(facts) {
        return false;
    }
    let late = |end_ns: u64| end_ns != 0 && overstayed(end_ns.max(facts.bound_ns), now_ns);
    late(ends.own_ns) || late(ends.session_ns)
}

/// What TCP did to a connection while it was pooled counts from the BIND that takes it out: only idleness counted before.
#[inline(always)]
pub(crate) fn leave_pool(facts: &mut Facts, now_ns: u64) {
    if !pooled(facts) {
        return;
    }
    if facts.peer_done_ns != 0 {
        facts.peer_done_ns = now_ns;
    }
    if facts.dead_ns != 0 {
        facts.dead_ns = now_ns;
    }
}

/// TCP leaves CLOSE_WAIT by an own FIN or a reset. Within grace, or where the rule did not run, that was in time; otherwise it was
/// broken already.
#[inline(always)]
pub(crate) fn leave_close_wait(facts: &mut Facts, now_ns: u64) {
    let ran = facts.held_ns != 0 && !pooled(facts);
    if !ran || !overstayed(facts.peer_done_ns.max(facts.held_ns), now_ns) {
        facts.peer_done_ns = 0;
    }
}

/// Whether the socket is kept alive between requests: judged by idleness only.
#[inline(always)]
fn pooled(facts: &Facts) -> bool {
    facts.bound_ns != 0 && facts.role == Role::Pool as u16
}

/// Whether a socket that goes away now should have done so longer than grace ago, by its owner or by TCP.
#[inline(always)]
pub(crate) fn is_late(facts: &Facts, ends: &Ends, now_ns: u64) -> bool {
    outlived(facts, ends, now_ns) || is_stuck(facts, now_ns)
}

/// Whether TCP has been done with a socket for longer than grace.
#[inline(always)]
fn is_stuck(facts: &Facts, now_ns: u64) -> bool {
    if pooled(facts) {
        return false;
    }
    // What happened in a listener's backlog is nobody's fault until there is a descriptor.
    let stuck = |since_ns: u64| since_ns != 0 && overstayed(since_ns.max(facts.held_ns), now_ns);
    stuck(facts.peer_done_ns) || stuck(facts.dead_ns)
}

/// Forgets what TCP did to a socket that connects or listens at `now_ns`, perhaps not for the first time, but not that it was too
/// late for it.
#[inline(always)]
pub(crate) fn begin_anew(socket: &mut Socket, now_ns: u64) {
    if is_stuck(&socket.facts, now_ns) {
        let ends = ends(&socket.facts);
        emit::renewed(now_ns, 0, kernel::tgid(), socket, ends);
    }
    socket.facts.peer_done_ns = 0;
    socket.facts.dead_ns = 0;
    socket.facts.state = 0;
}

/// Returns [`ANNOTATES`] when a process that annotates should have bound the socket to an owner by now; `tgid` as of
/// [`annotates_bit`].
#[inline(always)]
pub(crate) fn unowned_bit(facts: &Facts, now_ns: u64, tgid: impl FnOnce() -> u32) -> u32 {
    let owed = facts.protocol == IPPROTO_TCP && facts.bound_ns == 0;
    if owed && overstayed(facts.held_ns, now_ns) {
        annotates_bit(facts, tgid)
    } else {
        0
    }
}

#[inline(always)]
fn overstayed(since_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(since_ns) > kernel::grace_ns()
}
