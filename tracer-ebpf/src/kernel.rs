//! Reads of kernel structs, at offsets that user space took from this kernel's BTF.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{self, bpf_get_current_task_btf};
use tracer_abi::limits::CGROUP_LEVELS;
use tracer_abi::offsets::{Offsets, PID_NS_INIT_INUM, PID_NS_LEVELS};

/// `PF_EXITING` (linux/sched.h).
const PF_EXITING: u32 = 0x4;

/// Set before load; in a frozen `.rodata`, so that the verifier sees constants.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    task_flags: 0,
    task_tgid: 0,
    task_comm: 0,
    task_group_leader: 0,
    task_start_time: 0,
    task_signal: 0,
    task_cgroups: 0,
    signal_live: 0,
    css_set_dfl_cgrp: 0,
    cgroup_kn: 0,
    cgroup_self_parent: 0,
    css_cgroup: 0,
    kernfs_node_id: 0,
    task_thread_pid: 0,
    pid_level: 0,
    pid_numbers: 0,
    upid_ns: 0,
    upid_size: 0,
    pid_namespace_inum: 0,
    regs_ip: 0,
    regs_sp: 0,
    regs_bp: 0,
    socket_sk: 0,
    sock_family: 0,
    sock_state: 0,
    sock_num: 0,
    sock_cookie: 0,
    sock_protocol: 0,
    sock_err: 0,
    sock_cgrp_data: 0,
    tcp_bytes_received: 0,
    tcp_bytes_acked: 0,
    tcp_rcv_nxt: 0,
    tcp_copied_seq: 0,
    tcp_write_seq: 0,
    tcp_snd_una: 0,
};

/// Set before load: the grace in nanoseconds.
#[unsafe(no_mangle)]
static GRACE_NS: u64 = 0;

/// Set before load: the inode number of the tracer's PID namespace.
#[unsafe(no_mangle)]
static PID_NS_INUM: u32 = PID_NS_INIT_INUM;

/// Set before load: the audited cgroup's id, its directory's inode number.
#[unsafe(no_mangle)]
static CGROUP_ID: u64 = 0;

/// Set before load: the tracer's own process, by its number in its PID namespace.
#[unsafe(no_mangle)]
static TRACER_TGID: u32 = 0;

/// Returns the tracer's own process.
#[inline(always)]
pub(crate) fn tracer() -> u32 {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    unsafe { ptr::read_volatile(&raw const TRACER_TGID) }
}

/// Returns the grace in nanoseconds.
#[inline(always)]
pub(crate) fn grace_ns() -> u64 {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    unsafe { ptr::read_volatile(&raw const GRACE_NS) }
}

/// Where the fields are.
#[inline(always)]
pub(crate) fn offsets() -> *const Offsets {
    &raw const OFFSETS
}

/// Reads one field of [`OFFSETS`].
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: a static of our own; volatile because user space writes it before the load.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::kernel::offsets()).$field) as usize }
    };
}
pub(crate) use offset;

/// Reads a `T` at `base + offset`; `None` when the kernel refuses the address.
#[inline(always)]
pub(crate) fn read<T>(base: *const c_void, offset: usize) -> Option<T> {
    // SAFETY: `bpf_probe_read_kernel` checks the address itself.
    unsafe { bpf_probe_read_kernel(base.byte_add(offset).cast::<T>()).ok() }
}

/// Copies `length` bytes, as many as the verifier knows `to` to have at least; nothing when the kernel refuses the address.
#[inline(always)]
pub(crate) fn copy(to: *mut u8, length: u32, from: *const u8) {
    // SAFETY: the verifier checks `to`, the helper `from`.
    unsafe { generated::bpf_probe_read_kernel(to.cast(), length, from.cast()) };
}

/// Returns the cookie of a context's socket, which gets one if it has none.
#[inline(always)]
pub(crate) fn cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the verifier refuses contexts that the helper does not know.
    unsafe { generated::bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Returns a socket's cookie; 0 while it has none. For programs that are not offered `bpf_get_socket_cookie`, and whose sockets may
/// not be reckoned with: the helper that reads does not know that it is one which it reads from the stack.
#[inline(always)]
pub(crate) fn cookie_of(sk: *const c_void) -> u64 {
    let mut on_stack = ptr::null::<c_void>();
    // SAFETY: a variable of our own; volatile so that it is one.
    unsafe { (&raw mut on_stack).write_volatile(sk) };
    read::<*const c_void>((&raw const on_stack).cast(), 0)
        .and_then(|sk| read(sk, offset!(sock_cookie)))
        .unwrap_or(0)
}

/// Loads a `T` at `base + offset` without the call that [`read`] is; where the address is bad the kernel gives zeros.
///
/// # Safety
///
/// `base` must be a pointer whose type the verifier knows, and `offset` that of a field or an array of at least this size.
#[inline(always)]
unsafe fn load<T: Copy>(base: *const c_void, offset: usize) -> T {
    // SAFETY: the verifier refuses what the caller did not promise. Volatile: LLVM must not make other loads of it.
    unsafe { ptr::read_volatile(base.byte_add(offset).cast::<T>()) }
}

/// Returns the current task's struct, with its type.
#[inline(always)]
fn current() -> *const c_void {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task_btf() as *const c_void }
}

/// Returns the current process. `bpf_get_current_pid_tgid` is not offered to every program type that needs it, and knows
/// the initial PID namespace only.
#[inline(always)]
pub(crate) fn tgid() -> u32 {
    tgid_of(current())
}

/// Returns a task's process by its number in the tracer's PID namespace (`task_tgid_nr_ns`); 0 when it has none there.
#[inline(always)]
pub(crate) fn tgid_of(task: *const c_void) -> u32 {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    let wanted = unsafe { ptr::read_volatile(&raw const PID_NS_INUM) };
    if wanted == PID_NS_INIT_INUM {
        return initial_tgid_of(task);
    }
    number_in(task, wanted).unwrap_or(0)
}

#[inline(always)]
fn number_in(task: *const c_void, wanted: u32) -> Option<u32> {
    let leader = read::<*const c_void>(task, offset!(task_group_leader))?;
    let pid = read::<*const c_void>(leader, offset!(task_thread_pid))?;
    let level = read::<u32>(pid, offset!(pid_level))?;
    for n in 0..=PID_NS_LEVELS {
        if n > level {
            break;
        }
        let number = offset!(pid_numbers) + n as usize * offset!(upid_size);
        let namespace = read::<*const c_void>(pid, number + offset!(upid_ns))?;
        if read::<u32>(namespace, offset!(pid_namespace_inum))? == wanted {
            return read::<u32>(pid, number);
        }
    }
    None
}

/// Writes `comm` of the current process.
///
/// # Safety
///
/// `to` must be memory of a map or a ring, aligned to eight bytes.
#[inline(always)]
pub(crate) unsafe fn comm(to: *mut [u8; 16]) {
    // SAFETY: the caller's promise.
    unsafe { comm_of(current(), to) };
}

/// Writes `comm` of a task's process: that of its first thread, as threads have names of their own.
///
/// # Safety
///
/// As of [`comm`].
#[inline(always)]
pub(crate) unsafe fn comm_of(task: *const c_void, to: *mut [u8; 16]) {
    let at = offset!(task_comm);
    // SAFETY: a leader is a task, `comm` is an array of 16 bytes; `to` is the caller's promise.
    unsafe {
        let leader = leader_of(task);
        let words = [load::<u64>(leader, at), load::<u64>(leader, at + 8)];
        to.cast::<[u64; 2]>().write(words);
    }
}

/// Returns a task's process, that is its first thread.
#[inline(always)]
fn leader_of(task: *const c_void) -> *const c_void {
    let at = offset!(task_group_leader);
    // SAFETY: every caller's task has its type from the kernel.
    unsafe { load(task, at) }
}

/// Whether the current task is on its way out, so that the kernel and not the program drops its descriptors.
#[inline(always)]
pub(crate) fn exiting() -> bool {
    let at = offset!(task_flags);
    // SAFETY: the current task has its type from the helper.
    let flags = unsafe { load::<u32>(current(), at) };
    flags & PF_EXITING != 0
}

/// Returns when the current process was started.
#[inline(always)]
pub(crate) fn started_ns() -> u64 {
    let at = offset!(task_start_time);
    // SAFETY: a leader is a task.
    unsafe { load(leader_of(current()), at) }
}

/// Returns a task's process by its number in the initial PID namespace, which is never 0.
#[inline(always)]
pub(crate) fn initial_tgid_of(task: *const c_void) -> u32 {
    let at = offset!(task_tgid);
    // SAFETY: every caller's task has its type from the kernel.
    unsafe { load(task, at) }
}

/// Whether a task that exits is the last thread of its process (`do_exit` has counted it off).
#[inline(always)]
pub(crate) fn is_last_thread(task: *const c_void) -> bool {
    read::<*const c_void>(task, offset!(task_signal))
        .and_then(|signal| read::<i32>(signal, offset!(signal_live)))
        .is_none_or(|live| live == 0)
}

/// Whether a task is in the audited cgroup or below it.
#[inline(always)]
pub(crate) fn is_inside(task: *const c_void) -> bool {
    read::<*const c_void>(task, offset!(task_cgroups))
        .and_then(|set| read::<*const c_void>(set, offset!(css_set_dfl_cgrp)))
        .is_some_and(is_audited)
}

/// Whether a socket was made in the audited cgroup or below it.
#[inline(always)]
pub(crate) fn is_made_inside(sk: *const c_void) -> bool {
    read::<*const c_void>(sk, offset!(sock_cgrp_data)).is_some_and(is_audited)
}

/// Whether a cgroup is the audited one or below it.
#[inline(always)]
fn is_audited(cgroup: *const c_void) -> bool {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    let wanted = unsafe { ptr::read_volatile(&raw const CGROUP_ID) };
    let mut cgroup = cgroup;
    for _ in 0..CGROUP_LEVELS {
        let id = read::<*const c_void>(cgroup, offset!(cgroup_kn))
            .and_then(|node| read::<u64>(node, offset!(kernfs_node_id)));
        if id == Some(wanted) {
            return true;
        }
        let above = read::<*const c_void>(cgroup, offset!(cgroup_self_parent))
            .filter(|parent| !parent.is_null())
            .and_then(|parent| read::<*const c_void>(parent, offset!(css_cgroup)));
        let Some(above) = above else { return false };
        cgroup = above;
    }
    false
}
