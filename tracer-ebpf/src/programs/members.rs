//! Which processes belong to the audit: those that entered its cgroup, and all that they start. One
//! that leaves it is an event, since the sockets that it makes from then on are not seen.

use core::ffi::c_void;

use aya_ebpf::programs::BtfTracePointContext;
use tracer_abi::counter::Counter;
use tracer_abi::scope;

use crate::counters::count;
use crate::emit;
use crate::kernel::{self, Task, now_ns};
use crate::storage;

/// Returns the task that a tracepoint has as its `n`th argument.
#[inline(always)]
fn task(ctx: &BtfTracePointContext, n: usize) -> Task {
    // SAFETY: each of the tracepoints has a task there, which is never null.
    unsafe { Task::new(ctx.arg::<*const c_void>(n)) }
}

#[inline(always)]
pub(super) fn forked(ctx: &BtfTracePointContext) {
    let (parent, child) = (task(ctx, 0), task(ctx, 1));
    let process = parent.initial_tgid();
    if !storage::belongs(parent) {
        return;
    }
    let born = child.initial_tgid();
    if born != process {
        // One may be born elsewhere: clone3(CLONE_INTO_CGROUP).
        follow(child, born);
    }
}

#[inline(always)]
pub(super) fn moved(ctx: &BtfTracePointContext) {
    let task = task(ctx, 2);
    let process = task.initial_tgid();
    if storage::is_member(process) {
        follow(task, process);
    } else if task.is_inside() && !kernel::has_scope(scope::PROCESSES) {
        count(Counter::Entered);
        storage::add_member(process);
    }
}

#[inline(always)]
pub(super) fn exited(ctx: &BtfTracePointContext) {
    let task = task(ctx, 0);
    if task.is_last_thread() {
        storage::remove_member(task.initial_tgid());
        storage::remove_target(task.tgid());
        storage::annotator_gone(task.tgid());
    }
}

#[inline(always)]
pub(super) fn executed(ctx: &BtfTracePointContext) {
    storage::annotator_gone(task(ctx, 0).tgid());
}

/// Keeps a process of the audit among the members while it is inside.
#[inline(always)]
fn follow(task: Task, process: u32) {
    if task.is_inside() {
        storage::add_member(process);
        return;
    }
    storage::remove_member(process);
    count(Counter::Left);
    emit::left(now_ns(), task);
}
