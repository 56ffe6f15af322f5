//! `sockops`: what TCP does. It may run in a softirq, where the current task is any.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock,
};
use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use aya_log_ebpf::warn;
use tracer_abi::counter::Counter;
use tracer_abi::facts::{AF_INET, IPPROTO_TCP, IPPROTO_UDP, fact};
use tracer_abi::{record, scope};

use crate::counters::{count, discount};
use crate::emit;
use crate::kernel::{self, Sock, low_u16, now_ns, offset, read};
use crate::rules::{self, TCP_CLOSE_WAIT};
use crate::socket::SocketRef;
use crate::storage::{self, new_id};

/// `TCP_*` (net/tcp_states.h).
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
pub(super) const TCP_CLOSE: u32 = 7;
const TCP_LAST_ACK: u32 = 9;
pub(super) const TCP_LISTEN: u32 = 10;
const TCP_CLOSING: u32 = 11;

#[inline(always)]
pub(super) fn changed(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => dialing(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => arrived(ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(ctx),
        BPF_SOCK_OPS_STATE_CB => moved(ctx),
        _ => {}
    }
}

/// Returns the full socket of the context; sockops may run with none, or with a request sock.
#[inline(always)]
fn sk(ctx: &SockOpsContext) -> Option<Sock> {
    // SAFETY: the context is valid; the verifier rewrites the access.
    let sk: *mut bpf_sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: a socket that is not null.
    Some(unsafe { Sock::new(sk.cast()) })
}

#[inline(always)]
fn known(ctx: &SockOpsContext) -> Option<SocketRef> {
    storage::lookup(sk(ctx)?, || kernel::cookie(ctx))
}

/// Asks for STATE_CB from now on: what walks saw of the socket until now is of no use any more.
#[inline(always)]
fn watch(ctx: &SockOpsContext, socket: SocketRef) {
    if socket.flags() & fact::UNWATCHED != 0 {
        socket.unmark(fact::UNWATCHED | fact::LATE);
    }
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    let _ = ctx.set_cb_flags(flags.cast_signed());
}

/// A socket is told to connect. If that fails before a SYN is sent (no route, no address, no port),
/// no other hook says so: it counts as dead until it dials.
#[inline(always)]
pub(super) fn tried(ctx: &SockAddrContext, address: impl FnOnce(&SockAddrContext, SocketRef)) {
    // SAFETY: the context is valid; `sk` is a socket, never null here.
    let sk = unsafe { Sock::new((*ctx.sock_addr).__bindgen_anon_1.sk.cast::<c_void>()) };
    let Some(socket) = storage::lookup(sk, || kernel::cookie(ctx)) else {
        return;
    };
    match socket.protocol() {
        IPPROTO_TCP => {
            count(Counter::Undialed);
            let now_ns = now_ns();
            rules::begin_anew(socket, now_ns);
            socket.set_dead_ns(now_ns);
        }
        IPPROTO_UDP => {
            target(ctx, socket);
            address(ctx, socket);
        }
        _ => {}
    }
}

/// Notes to which port a UDP socket is told to send.
#[inline(always)]
fn target(ctx: &SockAddrContext, socket: SocketRef) {
    // SAFETY: the context is valid; the verifier rewrites the access. The port is in network order,
    // in the lower half.
    let port = unsafe { (*ctx.sock_addr).user_port };
    socket.set_remote_port(u16::from_be(low_u16(port)));
    socket.mark(fact::DIALED);
}

/// Copies the IPv4 address of the context.
#[inline(always)]
pub(super) fn target4(ctx: &SockAddrContext, socket: SocketRef) {
    // SAFETY: as in `target`.
    socket.set_remote::<0>(unsafe { (*ctx.sock_addr).user_ip4 });
}

/// Copies the IPv6 address of the context.
#[inline(always)]
pub(super) fn target6(ctx: &SockAddrContext, socket: SocketRef) {
    macro_rules! set_words {
        ($($n:literal)*) => {
            // SAFETY: as in `target`; volatile, since the verifier wants loads of a word.
            $(socket.set_remote::<$n>(unsafe {
                ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[$n])
            });)*
        };
    }
    set_words!(0 1 2 3);
}

#[inline(always)]
fn dialing(ctx: &SockOpsContext) {
    let Some(socket) = known(ctx) else { return };
    watch(ctx, socket);
    socket.mark(fact::DIALED);
    if socket.dead_ns() != 0 {
        discount(Counter::Undialed);
    }
    socket.set_dead_ns(0);
    tuple(ctx, socket);
}

#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    let Some(socket) = known(ctx) else { return };
    count(Counter::Connected);
    // A socket that was dialed before the tracer came has no tuple yet, and no callbacks.
    if socket.remote_port() == 0 {
        watch(ctx, socket);
        tuple(ctx, socket);
    }
}

#[inline(always)]
fn arrived(ctx: &SockOpsContext) {
    let Some(sk) = sk(ctx) else { return };
    // Whose it is, is known when it has a descriptor.
    if kernel::has_scope(scope::PROCESSES) {
        return;
    }
    let cookie = kernel::cookie(ctx);
    if storage::lookup(sk, || cookie).is_some() {
        // It dialed a socket that dialed it at that moment, perhaps itself (RFC 9293, section 3.5):
        // nobody's child.
        count(Counter::Connected);
        return;
    }
    let Some(socket) = storage::create_at_birth(sk, cookie) else {
        warn!(
            ctx,
            "no storage for an arrived connection: its life cannot be followed"
        );
        return;
    };
    watch(ctx, socket);
    let now_ns = now_ns();
    socket.set_id(new_id());
    socket.set_flags(fact::CHILD);
    socket.set_born_ns(now_ns);
    socket.set_family(low_u16(ctx.family()));
    socket.set_protocol(IPPROTO_TCP);
    tuple(ctx, socket);
    emit::brief(record::ARRIVED, now_ns, socket);
}

#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let Some(socket) = known(ctx) else { return };
    watch(ctx, socket);
    socket.mark(fact::LISTENER);
    rules::begin_anew(socket, now_ns());
    tuple(ctx, socket);
}

/// TCP changes its state. Most changes are of no interest, and none after the release.
#[inline(always)]
fn moved(ctx: &SockOpsContext) {
    let (before, state) = (ctx.arg(0), ctx.arg(1));
    if !matches!(
        state,
        TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSE
    ) {
        return;
    }
    let Some(socket) = known(ctx) else { return };
    if socket.flags() & fact::RELEASED != 0 {
        // Other programs keep the callbacks that they asked for.
        let flags = ctx.cb_flags() & !BPF_SOCK_OPS_STATE_CB_FLAG;
        let _ = ctx.set_cb_flags(flags.cast_signed());
        if let Some(sk) = sk(ctx) {
            storage::release(sk);
        }
        return;
    }
    match state {
        TCP_CLOSE_WAIT => {
            socket.mark(fact::PEER_FIN);
            let now_ns = keep_counts(ctx, socket, state);
            emit::brief(record::PEER_DONE, now_ns, socket);
            socket.set_peer_done_ns(now_ns);
        }
        TCP_CLOSE => {
            if before == TCP_CLOSE_WAIT {
                rules::leave_close_wait(socket, sk(ctx), now_ns());
            }
            mark_fins(ctx, socket, before);
            let now_ns = keep_counts(ctx, socket, state);
            emit::brief(record::DIED, now_ns, socket);
            socket.set_dead_ns(now_ns);
        }
        TCP_LAST_ACK => rules::leave_close_wait(socket, sk(ctx), now_ns()),
        TCP_FIN_WAIT2 => {
            socket.mark(fact::OWN_FIN);
        }
        _ => {}
    }
}

/// Keeps the state and what TCP counted up to now, and returns the time.
#[inline(always)]
fn keep_counts(ctx: &SockOpsContext, socket: SocketRef, state: u32) -> u64 {
    socket.set_state(low_u16(state));
    // SAFETY: the context is valid. The verifier wants single loads of eight bytes.
    let (received, acked) = unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.ops).bytes_received),
            ptr::read_volatile(&raw const (*ctx.ops).bytes_acked),
        )
    };
    socket.set_bytes_received(received);
    socket.set_bytes_acked(acked);
    now_ns()
}

/// Marks the FINs of a connection that goes from the state `before` to CLOSE.
#[inline(always)]
fn mark_fins(ctx: &SockOpsContext, socket: SocketRef, before: u32) {
    // SAFETY: the context is valid; the verifier rewrites the accesses.
    let acknowledged = unsafe { (*ctx.ops).snd_una == (*ctx.ops).snd_nxt };
    let bits = match before {
        // TIME_WAIT is no state of the socket itself: the peer's FIN, unless it was a reset.
        TCP_FIN_WAIT2 if !is_reset(ctx) => fact::PEER_FIN,
        TCP_CLOSING if acknowledged => fact::PEER_FIN | fact::OWN_FIN,
        TCP_CLOSING => fact::PEER_FIN,
        TCP_LAST_ACK if acknowledged => fact::OWN_FIN,
        _ => return,
    };
    socket.mark(bits);
}

#[inline(always)]
fn is_reset(ctx: &SockOpsContext) -> bool {
    let Some(sk) = sk(ctx) else { return false };
    // SAFETY: `sk` is a full socket. The verifier allows arithmetic on what the helper returns, as
    // it does not on the context's own pointer.
    let sk = unsafe { bpf_skc_to_tcp_sock(sk.as_ptr()) };
    !sk.is_null() && read::<i32>(sk.cast(), offset!(sock_err)) != Some(0)
}

/// Copies the tuple: at release it may be gone.
#[inline(always)]
fn tuple(ctx: &SockOpsContext, socket: SocketRef) {
    socket.set_local_port(low_u16(ctx.local_port()));
    // The context holds it in network order, in the upper half.
    socket.set_remote_port(low_u16(u32::from_be(ctx.remote_port())));
    if socket.family() == AF_INET {
        socket.set_addresses::<0>(ctx.local_ip4(), ctx.remote_ip4());
        return;
    }
    macro_rules! set_words {
        ($($n:literal)*) => {
            // SAFETY: the context is valid; the verifier rejects loads wider than a word there.
            $(unsafe {
                let local = ptr::read_volatile(&raw const (*ctx.ops).local_ip6[$n]);
                let remote = ptr::read_volatile(&raw const (*ctx.ops).remote_ip6[$n]);
                socket.set_addresses::<$n>(local, remote);
            })*
        };
    }
    set_words!(0 1 2 3);
}
