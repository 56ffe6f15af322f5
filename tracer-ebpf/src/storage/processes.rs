//! The processes that annotate, and those that belong to the audit.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use tracer_abi::counter::Counter;
use tracer_abi::limits::{ANNOTATORS_MAX, MEMBERS_MAX};
use tracer_abi::record::ANNOTATES;
use tracer_abi::scope;

use crate::counters::count;
use crate::kernel::{self, Task, now_ns};
use crate::socket::SocketRef;

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

/// The processes that user space names, by their numbers in the tracer's PID namespace. 0, which no
/// process has, stands for all in the cgroup: what they have is adopted once it is there.
#[btf_map]
static TARGETS: HashMap<u32, u8, { MEMBERS_MAX as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The life of a process that annotates: others may have its number before and after it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Annotator {
    /// When it was started.
    started_ns: u64,
    /// When it exited or became another program; 0 before.
    gone_ns: u64,
}

/// Whether [`ANNOTATORS`] has an entry: most programs do not annotate, and a load is cheaper than a
/// lookup.
static mut ANYBODY_ANNOTATES: u32 = 0;

#[inline(always)]
fn anybody_annotates() -> bool {
    // SAFETY: a static of our own, of a size that is loaded at once.
    unsafe { (&raw const ANYBODY_ANNOTATES).read_volatile() != 0 }
}

/// Remembers that the current process annotates.
#[inline(always)]
pub(crate) fn remember_annotator(tgid: u32) {
    if annotator(tgid).is_some_and(|known| known.gone_ns == 0) {
        return;
    }
    let life = Annotator {
        started_ns: Task::current().started_ns(),
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
    let known = ANNOTATORS.get_ptr(tgid)?;
    // SAFETY: the map returned the pointer. Copied at once; one that changes meanwhile is of a
    // process that just exits.
    Some(unsafe { known.read_volatile() })
}

/// Notes that a process exits or becomes another program: what is opened under its number from now
/// on is not its own.
#[inline(always)]
pub(crate) fn annotator_gone(tgid: u32) {
    if !anybody_annotates() {
        return;
    }
    if let Some(known) = ANNOTATORS.get_ptr_mut(tgid) {
        // SAFETY: the map returned the pointer; the field is an aligned word.
        unsafe {
            let gone_ns = &raw mut (*known).gone_ns;
            if gone_ns.read_volatile() == 0 {
                gone_ns.write_volatile(now_ns());
            }
        }
    }
}

/// Returns [`ANNOTATES`] when the opener of the socket, or `tgid` if that is not known, is a
/// process that annotates.
#[inline(always)]
pub(crate) fn annotates_bit(socket: SocketRef, tgid: impl FnOnce() -> u32) -> u32 {
    if !anybody_annotates() {
        return 0;
    }
    let opener = socket.opener();
    let who = if opener == 0 { tgid() } else { opener };
    let opened_ns = socket.held_ns();
    match annotator(who) {
        Some(life)
            if opened_ns >= life.started_ns && (life.gone_ns == 0 || opened_ns <= life.gone_ns) =>
        {
            ANNOTATES
        }
        Some(_) | None => 0,
    }
}

/// Remembers that a process belongs to the audit.
#[inline(always)]
pub(crate) fn add_member(tgid: u32) {
    if MEMBERS.insert(tgid, 1, 0).is_err() {
        count(Counter::MemberFailures);
    }
}

/// Forgets a process of the audit.
#[inline(always)]
pub(crate) fn remove_member(tgid: u32) {
    // Most that exit belong to no audit.
    let _ = MEMBERS.remove(tgid);
}

/// Whether a process belongs to the audit.
#[inline(always)]
pub(crate) fn is_member(tgid: u32) -> bool {
    MEMBERS.get_ptr(tgid).is_some()
}

/// Whether a process belongs to the audit, also one that was there before the programs were
/// attached: it becomes a member then.
#[inline(always)]
pub(crate) fn belongs(task: Task) -> bool {
    let process = task.initial_tgid();
    if is_member(process) {
        return true;
    }
    let is_new = if kernel::has_scope(scope::CGROUP) {
        is_target(0) && task.is_inside()
    } else {
        kernel::has_scope(scope::PROCESSES) && is_target(task.tgid())
    };
    if is_new {
        add_member(process);
    }
    is_new
}

#[inline(always)]
fn is_target(tgid: u32) -> bool {
    TARGETS.get_ptr(tgid).is_some()
}

/// Forgets a process that user space named: its number may be another's soon.
#[inline(always)]
pub(crate) fn remove_target(tgid: u32) {
    if kernel::has_scope(scope::PROCESSES) {
        // Most that exit were not named.
        let _ = TARGETS.remove(tgid);
    }
}

/// Whether what the current process does is of no concern: only named processes are looked at, and
/// it is none of them.
#[inline(always)]
pub(crate) fn is_bystander() -> bool {
    kernel::has_scope(scope::PROCESSES) && !belongs(Task::current())
}
