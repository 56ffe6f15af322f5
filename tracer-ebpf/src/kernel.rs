//! Reads of kernel structs, at offsets that user space took from this kernel's BTF.

mod sock;
mod task;

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{self, bpf_get_socket_cookie, bpf_jiffies64, bpf_ktime_get_ns};
use tracer_abi::limits::CGROUP_LEVELS;
use tracer_abi::offsets::{Offsets, PID_NS_INIT_INUM};
use tracer_abi::scope;

pub(crate) use sock::Sock;
pub(crate) use task::Task;

/// Set before load; in a frozen `.rodata`, so that the verifier sees constants.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    task_flags: 0,
    task_tgid: 0,
    task_comm: 0,
    task_group_leader: 0,
    task_start_time: 0,
    task_self_exec_id: 0,
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
    inet_sport: 0,
    sock_cookie: 0,
    sock_dport: 0,
    sock_daddr: 0,
    sock_rcv_saddr: 0,
    sock_v6_daddr: 0,
    sock_v6_rcv_saddr: 0,
    sock_protocol: 0,
    sock_err: 0,
    sock_cgrp_data: 0,
    tcp_bytes_received: 0,
    tcp_bytes_acked: 0,
    tcp_rcv_nxt: 0,
    tcp_copied_seq: 0,
    tcp_write_seq: 0,
    tcp_snd_una: 0,
    tcp_lsndtime: 0,
};

/// Set before load: the grace in nanoseconds.
#[unsafe(no_mangle)]
static GRACE_NS: u64 = 0;

/// Set before load: which processes and sockets belong to the audit; see [`scope`].
#[unsafe(no_mangle)]
static SCOPE: u32 = scope::COMMAND;

/// Set before load: the length of a tick (`TICK_NSEC`, linux/jiffies.h) in nanoseconds.
#[unsafe(no_mangle)]
static TICK_NS: u64 = 0;

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

/// Whether the audit has this scope.
#[inline(always)]
pub(crate) fn has_scope(wanted: u32) -> bool {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    unsafe { ptr::read_volatile(&raw const SCOPE) == wanted }
}

/// Returns the grace in nanoseconds.
#[inline(always)]
pub(crate) fn grace_ns() -> u64 {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    unsafe { ptr::read_volatile(&raw const GRACE_NS) }
}

/// Returns the time, CLOCK_MONOTONIC in nanoseconds.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Returns how long ago a time in jiffies was (`tcp_jiffies32`, net/tcp.h), in nanoseconds; up to a
/// tick less, since it may have been at the end of its own.
#[inline(always)]
fn since_jiffies32(then: u32) -> u64 {
    // SAFETY: the helper has no preconditions.
    let now = low_u32(unsafe { bpf_jiffies64() });
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    let tick_ns = unsafe { ptr::read_volatile(&raw const TICK_NS) };
    u64::from(now.wrapping_sub(then).saturating_sub(1)) * tick_ns
}

/// Returns the number of the current process in the tracer's PID namespace.
#[inline(always)]
pub(crate) fn tgid() -> u32 {
    Task::current().tgid()
}

/// Returns the lower half: the kernel hands over 16-bit fields of its contexts as 32 bits.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the upper half of such a field is zero"
)]
pub(crate) const fn low_u16(word: u32) -> u16 {
    word as u16
}

/// Returns the lower half.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is asked for"
)]
const fn low_u32(word: u64) -> u32 {
    word as u32
}

/// Returns a size as the helpers want it.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of structs and offsets in them"
)]
pub(crate) const fn size_u32(size: usize) -> u32 {
    size as u32
}

/// Whether the tracer's PID namespace is the initial one.
#[inline(always)]
pub(crate) fn is_in_initial_namespace() -> bool {
    pid_namespace() == PID_NS_INIT_INUM
}

/// Returns the inode number of the tracer's PID namespace.
#[inline(always)]
fn pid_namespace() -> u32 {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    unsafe { ptr::read_volatile(&raw const PID_NS_INUM) }
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

/// Copies `length` bytes; none when the kernel refuses the address `from`.
///
/// # Safety
///
/// `to` must have room for `length` bytes, and the verifier must know that it has.
#[inline(always)]
pub(crate) unsafe fn copy(to: *mut u8, length: u32, from: *const u8) {
    // SAFETY: `to` is the caller's promise; the helper checks `from`.
    unsafe { generated::bpf_probe_read_kernel(to.cast(), length, from.cast()) };
}

/// Returns the cookie of a context's socket, which gets one if it has none.
#[inline(always)]
pub(crate) fn cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the verifier rejects contexts that the helper does not know.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
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
