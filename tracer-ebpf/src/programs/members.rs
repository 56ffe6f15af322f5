//! Which processes belong to the audit: those that entered its cgroup, and all that they start. One
//! that leaves it is an event, since the sockets that it makes from then on are not seen.
//!
//! Since Linux 7 a task can be preempted inside a tracepoint, and the kernel skips a program that
//! the CPU still has to finish. So what is needed of each process is learned where nothing can be
//! preempted: its birth, its moves, and the end of its memory. The other tracepoints only tell
//! earlier: a process's exit, and the exec of one that annotates, which [`storage::opened_by`]
//! notices too.

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
    started(task(ctx, 0), task(ctx, 1));
}

#[inline(always)]
pub(super) fn woken(ctx: &BtfTracePointContext) {
    started(Task::current(), task(ctx, 0));
}

/// A task started another one, a process or a thread.
#[inline(always)]
fn started(parent: Task, child: Task) {
    if !storage::belongs(parent) || child.initial_tgid() == parent.initial_tgid() {
        return;
    }
    if child.is_inside() {
        storage::add_member(child);
    } else {
        // One may be born elsewhere: clone3(CLONE_INTO_CGROUP).
        leave(child);
    }
}

#[inline(always)]
pub(super) fn moved(ctx: &BtfTracePointContext) {
    let task = task(ctx, 2);
    if storage::is_member(task) {
        if !task.is_inside() {
            leave(task);
        }
    } else if task.is_inside() && !kernel::has_scope(scope::PROCESSES) {
        count(Counter::Entered);
        storage::add_member(task);
    }
}

#[inline(always)]
pub(super) fn exited(ctx: &BtfTracePointContext) {
    let task = task(ctx, 0);
    if task.is_last_thread() {
        storage::remove_member(task);
        storage::remove_target(task.tgid());
        storage::annotator_gone(task.tgid());
    }
}

/// A task is gone: what the exit of its process did is done now if the kernel skipped that.
#[inline(always)]
pub(super) fn freed(ctx: &BtfTracePointContext) {
    let task = task(ctx, 0);
    if task.is_leader() {
        storage::forget_process(task);
    }
}

#[inline(always)]
pub(super) fn executed(ctx: &BtfTracePointContext) {
    storage::annotator_gone(task(ctx, 0).tgid());
}

/// A process of the audit is outside from now on.
#[inline(always)]
fn leave(task: Task) {
    storage::remove_member(task);
    count(Counter::Left);
    emit::left(now_ns(), task);
}
