//! `sock_create` and `sock_release`: the life of a socket's file descriptor.

use core::ffi::c_void;
use core::ptr::NonNull;

use aya_ebpf::EbpfContext;
use aya_ebpf::programs::{SockAddrContext, SockContext};
use aya_log_ebpf::warn;
use tracer_abi::counter::Counter;
use tracer_abi::facts::{IPPROTO_TCP, Socket, fact};
use tracer_abi::record;

use super::tcp::TCP_CLOSE;
use crate::emit::{self, To};
use crate::kernel;
use crate::stack;
use crate::storage::{self, count, held, is_late, mark, new_id, now_ns};

#[inline(always)]
pub(super) fn created(ctx: &SockContext) {
    count(Counter::Created);
    let made = storage::create_at_birth(ctx.as_ptr(), kernel::cookie(ctx));
    let Some(socket) = made else {
        warn!(
            ctx,
            "no storage for a new socket: its life cannot be followed"
        );
        return;
    };
    first_sight(ctx, socket, now_ns(), fact::HELD);
    // SAFETY: `socket` comes from the storage; nobody else knows a socket that is being created.
    let facts = unsafe { &mut (*socket.as_ptr()).facts };
    facts.held_ns = facts.born_ns;
    storage::opened_by(facts, kernel::tgid);
    emit::brief(record::CREATED, facts.born_ns, facts);
    stack::record(facts.id);
}

/// Somebody asks whom a socket is connected to: accept does, for a program that wants the address, and so a listener's child
/// has got its descriptor.
#[inline(always)]
pub(super) fn asked(ctx: &SockAddrContext) {
    // SAFETY: the context is valid; `sk` is never null here.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let met = storage::lookup(sk.cast::<c_void>(), || kernel::cookie(ctx)).or_else(|| {
        // SAFETY: as above; the verifier rewrites the accesses.
        let (family, protocol) = unsafe { ((*sk).family, (*sk).protocol) };
        storage::met_accepted(sk.cast::<c_void>(), family as u16, protocol as u16)
    });
    let Some(socket) = met else { return };
    let is_first = held(socket, now_ns);
    // SAFETY: `socket` comes from the storage.
    let facts = unsafe { &mut (*socket.as_ptr()).facts };
    if is_first {
        stack::record(facts.id);
    }
    storage::opened_by(facts, kernel::tgid);
}

#[inline(always)]
pub(super) fn released(ctx: &SockContext) {
    count(Counter::Released);
    let now_ns = now_ns();
    let Some(socket) = storage::lookup(ctx.as_ptr(), || kernel::cookie(ctx)).or_else(|| {
        // Met for the first time as it goes, it was accepted, and no other hook saw it, as MPTCP makes them.
        let socket = storage::create(ctx.as_ptr())?;
        first_sight(ctx, socket, now_ns, fact::CHILD);
        Some(socket)
    }) else {
        return;
    };
    held(socket, || now_ns);
    // SAFETY: `socket` comes from the storage, and nobody frees it before it is marked.
    let known = unsafe { &mut *socket.as_ptr() };
    if known.facts.dead_ns != 0 && !is_closed(ctx) {
        // Told to connect, it waits for its first bytes to do so (TCP_FASTOPEN_CONNECT).
        known.facts.dead_ns = 0;
    }
    tell_of_release(ctx, known, now_ns);
    let is_tcp = known.facts.protocol == IPPROTO_TCP;
    mark(socket, fact::RELEASED);
    // Of any other connection TCP has something to tell yet, and whoever hears that first frees the place, from now on.
    if !is_tcp || is_closed(ctx) {
        storage::free(ctx.as_ptr());
    }
}

#[inline(always)]
fn is_closed(ctx: &SockContext) -> bool {
    // SAFETY: the context is the kernel's `bpf_sock`. Volatile: it may change from one call to the next.
    unsafe { (&raw const (*ctx.sock).state).read_volatile() == TCP_CLOSE }
}

#[inline(always)]
fn tell_of_release(ctx: &SockContext, known: &mut Socket, now_ns: u64) {
    let facts = &mut known.facts;
    let ends = storage::ends(facts);
    let unowned = storage::unowned_bit(facts, now_ns, kernel::tgid);
    let late = unowned != 0 || is_late(facts, &ends, now_ns);
    let exiting = kernel::exiting();
    if !late && !exiting {
        emit::release(now_ns, facts, storage::over_ns(facts, &ends));
        return;
    }
    if facts.cookie == 0 {
        facts.cookie = kernel::cookie(ctx);
    }
    let mut head = emit::head(record::OVERSTAYED, now_ns);
    head.flags = unowned;
    if exiting {
        head.flags |= record::BY_EXIT;
    }
    let to = if late {
        count(Counter::Late);
        To::Cases
    } else {
        To::Events
    };
    emit::overstay(to, head, kernel::tgid(), known, ends);
}

/// Fills in what the hook tells of a socket that nobody else knows: it comes, or it goes.
#[inline(always)]
fn first_sight(ctx: &SockContext, socket: NonNull<Socket>, now_ns: u64, flags: u32) {
    // SAFETY: `socket` comes from the storage, the context is the kernel's `bpf_sock`.
    unsafe {
        let facts = &mut (*socket.as_ptr()).facts;
        facts.id = new_id();
        facts.born_ns = now_ns;
        facts.flags = flags;
        facts.family = (*ctx.sock).family as u16;
        facts.protocol = (*ctx.sock).protocol as u16;
    }
}
