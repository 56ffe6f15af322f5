//! Which processes belong to the audit: those that entered its cgroup, and all that they start. One that leaves it is told
//! of, since the sockets that it makes from then on are not seen.

use core::ffi::c_void;

use aya_ebpf::programs::BtfTracePointContext;
use tracer_abi::counter::Counter;

use crate::emit;
use crate::kernel;
use crate::storage::{self, count, now_ns};

#[inline(always)]
pub(super) fn forked(ctx: &BtfTracePointContext) {
    let (parent, child) = (ctx.arg::<*const c_void>(0), ctx.arg::<*const c_void>(1));
    let process = kernel::initial_tgid_of(parent);
    if !storage::is_member(process) {
        return;
    }
    let born = kernel::initial_tgid_of(child);
    if born != process {
        // One may be born elsewhere: clone3(CLONE_INTO_CGROUP).
        follow(child, born);
    }
}

#[inline(always)]
pub(super) fn moved(ctx: &BtfTracePointContext) {
    let task = ctx.arg::<*const c_void>(2);
    let process = kernel::initial_tgid_of(task);
    if storage::is_member(process) {
        follow(task, process);
    } else if kernel::is_inside(task) {
        count(Counter::Entered);
        storage::join(process);
    }
}

#[inline(always)]
pub(super) fn exited(ctx: &BtfTracePointContext) {
    let task = ctx.arg::<*const c_void>(0);
    if kernel::is_last_thread(task) {
        storage::part(kernel::initial_tgid_of(task));
        storage::annotates_no_more(kernel::tgid_of(task));
    }
}

#[inline(always)]
pub(super) fn executed(ctx: &BtfTracePointContext) {
    storage::annotates_no_more(kernel::tgid_of(ctx.arg::<*const c_void>(0)));
}

/// Keeps a process of the audit among the members while it is inside.
#[inline(always)]
fn follow(task: *const c_void, process: u32) {
    if kernel::is_inside(task) {
        storage::join(process);
        return;
    }
    storage::part(process);
    count(Counter::Left);
    emit::left(now_ns(), task);
}
