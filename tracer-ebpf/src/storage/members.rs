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
static MEMBERS: HashMap<u32, u8, { MEMBERS_MAX as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The processes that user space names, by their numbers in the tracer's PID namespace. 0, which no
/// process has, stands for all in the cgroup: what they have is adopted once it is there.
#[btf_map]
static TARGETS: HashMap<u32, u8, { MEMBERS_MAX as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

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
