//! `sockops`: what TCP does underneath. It may run in a softirq, with `current` being anybody.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock,
};
use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use aya_log_ebpf::warn;
use tracer_abi::counter::Counter;
use tracer_abi::facts::{AF_INET, Facts, IPPROTO_TCP, Socket, fact};
use tracer_abi::record;

use crate::emit;
use crate::kernel::{self, offset};
use crate::storage::{self, count, mark, new_id, now_ns};

/// `TCP_*` (net/tcp_states.h).
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
pub(super) const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
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

/// The full socket of the context; sockops may run with none, or with a request sock.
#[inline(always)]
fn sk(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid; the verifier rewrites the access.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}

#[inline(always)]
fn known(ctx: &SockOpsContext) -> Option<NonNull<Socket>> {
    storage::lookup(sk(ctx)?.cast(), || kernel::cookie(ctx))
}

/// Asks for STATE_CB from now on.
#[inline(always)]
fn watch(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// A socket is told to connect. If that fails before a SYN is sent (no route, no address, no port), no other hook says so: it
/// counts as dead until it dials.
#[inline(always)]
pub(super) fn tried(ctx: &SockAddrContext) {
    // SAFETY: the context is valid; `sk` is never null here.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let Some(socket) = storage::lookup(sk.cast::<c_void>(), || kernel::cookie(ctx)) else {
        return;
    };
    // SAFETY: `socket` comes from the storage.
    let known = unsafe { &mut *socket.as_ptr() };
    if known.facts.protocol == IPPROTO_TCP {
        count(Counter::Undialed);
        let now_ns = now_ns();
        storage::begin_anew(known, now_ns);
        known.facts.dead_ns = now_ns;
    }
}

#[inline(always)]
fn dialing(ctx: &SockOpsContext) {
    let Some(socket) = known(ctx) else { return };
    watch(ctx);
    mark(socket, fact::DIALED);
    // SAFETY: `socket` comes from the storage.
    let facts = unsafe { &mut (*socket.as_ptr()).facts };
    if facts.dead_ns != 0 {
        storage::discount(Counter::Undialed);
    }
    facts.dead_ns = 0;
    tuple(ctx, facts);
}

#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    let Some(socket) = known(ctx) else { return };
    count(Counter::Connected);
    // SAFETY: `socket` comes from the storage.
    let facts = unsafe { &mut (*socket.as_ptr()).facts };
    // A socket that was dialed before the tracer came has no tuple yet.
    if facts.remote_port == 0 {
        tuple(ctx, facts);
    }
}

#[inline(always)]
fn arrived(ctx: &SockOpsContext) {
    let Some(sk) = sk(ctx) else { return };
    let cookie = kernel::cookie(ctx);
    if storage::lookup(sk.cast(), || cookie).is_some() {
        // It dialed whoever dialed it at that moment, if only itself (RFC 9293, section 3.5): nobody's child.
        count(Counter::Connected);
        return;
    }
    let Some(socket) = storage::create_at_birth(sk.cast(), cookie) else {
        warn!(
            ctx,
            "no storage for an arrived connection: its life cannot be followed"
        );
        return;
    };
    watch(ctx);
    // SAFETY: `socket` comes from the storage; the child is not yet in the accept queue, and nobody else knows it.
    let facts = unsafe { &mut (*socket.as_ptr()).facts };
    facts.id = new_id();
    facts.flags = fact::CHILD;
    facts.born_ns = now_ns();
    facts.family = ctx.family() as u16;
    facts.protocol = IPPROTO_TCP;
    tuple(ctx, facts);
    emit::brief(record::ARRIVED, facts.born_ns, facts);
}

#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let Some(socket) = known(ctx) else { return };
    watch(ctx);
    mark(socket, fact::LISTENER);
    // SAFETY: `socket` comes from the storage.
    let known = unsafe { &mut *socket.as_ptr() };
    storage::begin_anew(known, now_ns());
    tuple(ctx, &mut known.facts);
}

/// A TCP state change. Most are of no interest, and after the release all of them are the kernel's own business.
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
    // SAFETY: `socket` comes from the storage.
    let facts = unsafe { &mut (*socket.as_ptr()).facts };
    if facts.flags & fact::RELEASED != 0 {
        // What TCP does after the release is not looked at. Other programs keep what they asked for besides.
        let _ = ctx.set_cb_flags((ctx.cb_flags() & !BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
        if let Some(sk) = sk(ctx) {
            storage::free(sk.cast());
        }
        return;
    }
    match state {
        TCP_CLOSE_WAIT => {
            mark(socket, fact::PEER_FIN);
            facts.peer_done_ns = note(ctx, facts, state, record::PEER_DONE);
        }
        TCP_CLOSE => {
            if before == TCP_CLOSE_WAIT {
                storage::leave_close_wait(facts, now_ns());
            }
            fins(ctx, socket, before);
            facts.dead_ns = note(ctx, facts, state, record::DIED);
        }
        TCP_LAST_ACK => storage::leave_close_wait(facts, now_ns()),
        TCP_FIN_WAIT2 => {
            mark(socket, fact::OWN_FIN);
        }
        _ => {}
    }
}

/// Keeps what TCP counted up to now, tells of it, and returns the time.
#[inline(always)]
fn note(ctx: &SockOpsContext, facts: &mut Facts, state: u32, kind: u32) -> u64 {
    facts.state = state as u16;
    // SAFETY: the context is valid; these two are single eight-byte loads, as the verifier wants them.
    unsafe {
        facts.bytes_received = ptr::read_volatile(&raw const (*ctx.ops).bytes_received);
        facts.bytes_acked = ptr::read_volatile(&raw const (*ctx.ops).bytes_acked);
    }
    let now_ns = now_ns();
    emit::brief(kind, now_ns, facts);
    now_ns
}

/// Marks the FINs that a connection has seen which falls from the state `before` to CLOSE.
#[inline(always)]
fn fins(ctx: &SockOpsContext, socket: NonNull<Socket>, before: u32) {
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
    mark(socket, bits);
}

#[inline(always)]
fn is_reset(ctx: &SockOpsContext) -> bool {
    let Some(sk) = sk(ctx) else { return false };
    // SAFETY: `sk` is a full socket; unlike the context's own pointer, what the helper returns may be reckoned with.
    let sk = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
    !sk.is_null() && kernel::read::<i32>(sk.cast(), offset!(sock_err)) != Some(0)
}

/// Copies the tuple: at release it may be gone.
#[inline(always)]
fn tuple(ctx: &SockOpsContext, facts: &mut Facts) {
    facts.local_port = ctx.local_port() as u16;
    // The context holds it in network order, in the upper half.
    facts.remote_port = u32::from_be(ctx.remote_port()) as u16;
    if facts.family == AF_INET {
        set_word(&mut facts.local, 0, ctx.local_ip4());
        set_word(&mut facts.remote, 0, ctx.remote_ip4());
        return;
    }
    macro_rules! set_words {
        ($($n:literal)*) => {
            // SAFETY: the context is valid; the verifier refuses loads wider than a word there.
            $(unsafe {
                let local = ptr::read_volatile(&raw const (*ctx.ops).local_ip6[$n]);
                let remote = ptr::read_volatile(&raw const (*ctx.ops).remote_ip6[$n]);
                set_word(&mut facts.local, $n, local);
                set_word(&mut facts.remote, $n, remote);
            })*
        };
    }
    set_words!(0 1 2 3);
}

/// Sets the `n`th word of an address, which is in network order like it.
#[inline(always)]
fn set_word(address: &mut [u8; 16], n: usize, word: u32) {
    // SAFETY: the addresses lie in the facts aligned to eight bytes, and `n` is below four.
    unsafe { (&raw mut *address).cast::<u32>().add(n).write(word) };
}
