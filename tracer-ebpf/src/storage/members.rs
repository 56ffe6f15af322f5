//! The processes that belong to the audit.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use tracer_abi::counter::Counter;
use tracer_abi::limits::MEMBERS_MAX;
use tracer_abi::scope;

use crate::counters::count;
use crate::kernel::{self, Task};

/// The processes of the audit, by their numbers in the initial PID namespace.
#[btf_map]
static MEMBERS: HashMap<u32, Member, { MEMBERS_MAX as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The processes that user space names, by their numbers in the tracer's PID namespace. 0, which no
/// process has, stands for all in the cgroup: what they have is adopted once it is there.
#[btf_map]
static TARGETS: HashMap<u32, u8, { MEMBERS_MAX as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// A process of the audit: others may have its number before and after it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Member {
    /// When it was started.
    started_ns: u64,
    /// Its number in [`TARGETS`]; 0 if user space did not name it.
    target: u32,
    reserved: u32,
}

/// Remembers that a process belongs to the audit.
#[inline(always)]
pub(crate) fn add_member(task: Task) {
    add(task, 0);
}

#[inline(always)]
fn add(task: Task, target: u32) {
    let member = Member {
        started_ns: task.started_ns(),
        target,
        reserved: 0,
    };
    if MEMBERS.insert(task.initial_tgid(), member, 0).is_err() {
        count(Counter::MemberFailures);
    }
}

/// Forgets a process of the audit.
#[inline(always)]
pub(crate) fn remove_member(task: Task) {
    // Most that exit belong to no audit.
    let _ = MEMBERS.remove(task.initial_tgid());
}

/// Returns what is remembered under the number of a process, if it is of this one.
#[inline(always)]
fn member(task: Task) -> Option<Member> {
    let found = MEMBERS.get_ptr(task.initial_tgid())?;
    // SAFETY: the map returned the pointer. Copied at once; one that changes meanwhile is of a
    // process that is gone.
    let member = unsafe { found.read_volatile() };
    (member.started_ns == task.started_ns()).then_some(member)
}

/// Whether a process belongs to the audit.
#[inline(always)]
pub(crate) fn is_member(task: Task) -> bool {
    member(task).is_some()
}

/// Whether a process belongs to the audit, also one that was there before the programs were
/// attached: it becomes a member then.
#[inline(always)]
pub(crate) fn belongs(task: Task) -> bool {
    if is_member(task) {
        return true;
    }
    if kernel::has_scope(scope::CGROUP) {
        let is_new = is_target(0) && task.is_inside();
        if is_new {
            add(task, 0);
        }
        return is_new;
    }
    if !kernel::has_scope(scope::PROCESSES) {
        return false;
    }
    let tgid = task.tgid();
    let is_new = is_target(tgid);
    if is_new {
        add(task, tgid);
    }
    is_new
}

/// Forgets a process that is gone, unless its exit was seen.
#[inline(always)]
pub(crate) fn forget_process(task: Task) {
    if let Some(member) = member(task) {
        remove_member(task);
        if member.target != 0 {
            remove_target(member.target);
        }
    } else if kernel::is_in_initial_namespace() {
        // Its number in another namespace is gone already.
        remove_target(task.initial_tgid());
    }
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
