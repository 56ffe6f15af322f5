//! The hooks. Each is attached to the audited cgroup, but for the witness and those that follow
//! processes, which see the whole machine.
//!
//! Programs fail open: whatever goes wrong inside, they return 1. Only a malformed annotation is
//! refused.

mod annotate;
mod lifetime;
mod members;
mod tcp;
mod witness;

use aya_ebpf::macros::{btf_tracepoint, cgroup_sock, cgroup_sock_addr, cgroup_sockopt, sock_ops};
use aya_ebpf::programs::{
    BtfTracePointContext, SockAddrContext, SockContext, SockOpsContext, SockoptContext,
};

/// Lets the system call go on.
const ALLOW: i32 = 1;
/// Answers EPERM.
const REFUSE: i32 = 0;

/// The kernel accepts only programs of GPL-compatible licences for the helpers that are used here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// `int __cgroup_bpf_run_filter_sk(struct sock *sk, CGROUP_INET_SOCK_CREATE)`, from `inet_create`.
#[cgroup_sock(sock_create)]
fn sock_create(ctx: SockContext) -> i32 {
    lifetime::created(&ctx);
    ALLOW
}

/// `int __cgroup_bpf_run_filter_sk(struct sock *sk, CGROUP_INET_SOCK_RELEASE)`, from
/// `inet_release`: the last reference to the file is gone.
#[cgroup_sock(sock_release)]
fn sock_release(ctx: SockContext) -> i32 {
    lifetime::released(&ctx);
    ALLOW
}

/// `int __cgroup_bpf_run_filter_sock_addr(struct sock *sk, ..., CGROUP_INET4_GETPEERNAME)`, from
/// `inet_getname`: by `getpeername(2)`, and by `accept(2)` of a program that asks for the address.
/// There is no hook for accept itself.
#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    lifetime::asked(&ctx);
    ALLOW
}

/// The same from `inet6_getname`.
#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    lifetime::asked(&ctx);
    ALLOW
}

/// `int __cgroup_bpf_run_filter_sock_addr(struct sock *sk, ..., CGROUP_INET4_CONNECT)`, from
/// `tcp_v4_pre_connect`, before a route is looked for, and from `udp_pre_connect`.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    tcp::tried(&ctx, tcp::target4);
    ALLOW
}

/// The same from `tcp_v6_pre_connect` and `udpv6_pre_connect`.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    tcp::tried(&ctx, tcp::target6);
    ALLOW
}

/// `int __cgroup_bpf_run_filter_sock_ops(struct sock *sk, struct bpf_sock_ops_kern *,
/// CGROUP_SOCK_OPS)`, from `tcp_call_bpf`.
#[sock_ops]
fn sock_ops(ctx: SockOpsContext) -> u32 {
    tcp::changed(&ctx);
    1
}

/// `int __cgroup_bpf_run_filter_setsockopt(struct sock *sk, int *level, int *optname, ...)`, from
/// `do_sock_setsockopt` before the protocol sees the call.
#[cgroup_sockopt(setsockopt)]
fn setsockopt(ctx: SockoptContext) -> i32 {
    annotate::annotated(&ctx)
}

/// `trace_sched_process_fork(struct task_struct *parent, struct task_struct *child)`, from
/// `kernel_clone`.
#[btf_tracepoint(function = "sched_process_fork")]
fn process_fork(ctx: BtfTracePointContext) -> i32 {
    members::forked(&ctx);
    0
}

/// `trace_sched_wakeup_new(struct task_struct *child)`, from `wake_up_new_task`, which the parent
/// calls, with the run queue locked: there is no preemption, so that the kernel skips no run. Where
/// its hash tables allocate without locks (Linux 6.1), this program is loaded instead of
/// `process_fork`.
#[btf_tracepoint(function = "sched_wakeup_new")]
fn process_wakeup(ctx: BtfTracePointContext) -> i32 {
    members::woken(&ctx);
    0
}

/// `trace_sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`,
/// from `exec_binprm`.
#[btf_tracepoint(function = "sched_process_exec")]
fn process_exec(ctx: BtfTracePointContext) -> i32 {
    members::executed(&ctx);
    0
}

/// `trace_sched_process_exit(struct task_struct *p, ...)`, from `do_exit`, before the descriptors
/// are dropped.
#[btf_tracepoint(function = "sched_process_exit")]
fn process_exit(ctx: BtfTracePointContext) -> i32 {
    members::exited(&ctx);
    0
}

/// `trace_sched_process_free(struct task_struct *p)`, from `delayed_put_task_struct`, which RCU
/// calls where nothing is preempted, after the task was waited for.
#[btf_tracepoint(function = "sched_process_free")]
fn process_free(ctx: BtfTracePointContext) -> i32 {
    members::freed(&ctx);
    0
}

/// `trace_cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task,
/// bool threadgroup)`, from `cgroup_attach_task`, when it is done, under a spin lock. Hierarchies of
/// cgroup v1 call it too.
#[btf_tracepoint(function = "cgroup_attach_task")]
fn cgroup_attach(ctx: BtfTracePointContext) -> i32 {
    members::moved(&ctx);
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
