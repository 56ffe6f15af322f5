//! `sock_create` and `sock_release`: the life of a socket's file descriptor.

use core::ffi::c_void;

use aya_ebpf::programs::{SockAddrContext, SockContext};
use aya_log_ebpf::warn;
use tracer_abi::counter::Counter;
use tracer_abi::facts::{IPPROTO_TCP, fact};
use tracer_abi::histogram::Histogram;
use tracer_abi::{record, scope};

use super::tcp::{TCP_CLOSE, TCP_LISTEN};
use crate::counters::count;
use crate::emit::{self, To};
use crate::histograms::measure;
use crate::kernel::{self, Sock, Task, low_u16, now_ns};
use crate::rules::{self, TCP_CLOSE_WAIT};
use crate::socket::SocketRef;
use crate::stack;
use crate::storage::{self, hold, new_id};

#[inline(always)]
pub(super) fn created(ctx: &SockContext) {
    if storage::is_bystander() {
        return;
    }
    count(Counter::Created);
    let made = storage::create_at_birth(Sock::of(ctx), kernel::cookie(ctx));
    let Some(socket) = made else {
        warn!(
            ctx,
            "no storage for a new socket: its life cannot be followed"
        );
        return;
    };
    let now_ns = now_ns();
    first_sight(ctx, socket, now_ns, fact::HELD);
    socket.set_held_ns(now_ns);
    note_opener(socket);
    emit::brief(record::CREATED, now_ns, socket);
    stack::record(socket.id());
}

/// A program asks for the address of a peer. `accept` does too, for a program that wants the
/// address, and so a listener's child has got its descriptor.
#[inline(always)]
pub(super) fn asked(ctx: &SockAddrContext) {
    // SAFETY: the context is valid; `sk` is a socket, never null here.
    let (sk, sock) = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (sk, Sock::new(sk.cast::<c_void>()))
    };
    let known = storage::lookup(sock, || kernel::cookie(ctx)).or_else(|| {
        if storage::is_bystander() {
            return None;
        }
        // SAFETY: as above; the verifier rewrites the accesses.
        let (family, protocol) = unsafe { ((*sk).family, (*sk).protocol) };
        storage::create_accepted(sock, low_u16(family), low_u16(protocol))
    });
    let Some(socket) = known else { return };
    if hold(socket, now_ns) {
        stack::record(socket.id());
    }
    note_opener(socket);
}

#[inline(always)]
pub(super) fn released(ctx: &SockContext) {
    let now_ns = now_ns();
    let sk = Sock::of(ctx);
    let known = storage::lookup(sk, || kernel::cookie(ctx));
    // Of a named process, what no hook and no walk has seen was never counted.
    if known.is_none() && kernel::has_scope(scope::PROCESSES) {
        return;
    }
    count(Counter::Released);
    let Some(socket) = known.or_else(|| {
        // Seen for the first time as it goes, it was accepted and no other hook saw it, as MPTCP
        // makes them.
        let socket = storage::create(sk)?;
        first_sight(ctx, socket, now_ns, fact::CHILD);
        Some(socket)
    }) else {
        return;
    };
    hold(socket, || now_ns);
    if state(ctx) == TCP_LISTEN {
        // Of MPTCP, no callback says so.
        socket.mark(fact::LISTENER);
    }
    if socket.dead_ns() != 0 && !is_closed(ctx) {
        // Told to connect, it waits for its first bytes to do so (TCP_FASTOPEN_CONNECT).
        socket.set_dead_ns(0);
    }
    if state(ctx) == TCP_CLOSE_WAIT {
        rules::count_sent(socket, sk, now_ns);
    } else {
        rules::leave_close_wait_unseen(socket);
    }
    emit_release(ctx, socket, now_ns);
    let is_tcp = socket.protocol() == IPPROTO_TCP;
    socket.mark(fact::RELEASED);
    // TCP has more callbacks for any other connection. The first of them frees the slot, from now
    // on.
    if !is_tcp || is_closed(ctx) {
        storage::release(sk);
    }
}

/// Notes the current process as the opener of a socket that has none.
#[inline(always)]
fn note_opener(socket: SocketRef) {
    if socket.opener() == 0 {
        storage::set_opener(socket, kernel::tgid);
        // Loaded again, the number is one for the verifier, and not one for each namespace.
        storage::opened_by(socket.opener(), Task::current(), socket.held_ns());
    }
}

#[inline(always)]
fn is_closed(ctx: &SockContext) -> bool {
    state(ctx) == TCP_CLOSE
}

#[inline(always)]
fn state(ctx: &SockContext) -> u32 {
    // SAFETY: the context is the kernel's `bpf_sock`. Volatile: it may change from one call to the
    // next.
    unsafe { (&raw const (*ctx.sock).state).read_volatile() }
}

#[inline(always)]
fn emit_release(ctx: &SockContext, socket: SocketRef, now_ns: u64) {
    let ends = storage::ends(socket);
    measure(Histogram::Lifetime, now_ns.wrapping_sub(socket.born_ns()));
    let over_ns = rules::over_ns(socket, &ends);
    if over_ns != 0 {
        measure(Histogram::Outlive, now_ns.wrapping_sub(over_ns));
    }
    let unowned = rules::unowned_bit(socket, now_ns, kernel::tgid);
    let late = unowned != 0 || rules::is_late(socket, &ends, now_ns);
    let exiting = Task::current().is_exiting();
    if !late && !exiting {
        if emit::is_told(socket) {
            emit::release(now_ns, socket, over_ns);
        } else {
            storage::count_release(socket);
        }
        return;
    }
    if socket.cookie() == 0 {
        socket.set_cookie(kernel::cookie(ctx));
    }
    let mut head = emit::head(record::OVERSTAYED, now_ns);
    head.flags = unowned;
    if exiting {
        head.flags |= record::BY_EXIT;
    }
    let to = if late {
        count(Counter::Late);
        To::Violations
    } else {
        To::Events
    };
    emit::overstay(to, head, kernel::tgid(), socket, ends);
}

/// Sets what the hook knows of a socket that is not known yet: it comes, or it goes.
#[inline(always)]
fn first_sight(ctx: &SockContext, socket: SocketRef, now_ns: u64, flags: u32) {
    // SAFETY: the context is the kernel's `bpf_sock`; the verifier rewrites the accesses.
    let (family, protocol) = unsafe { ((*ctx.sock).family, (*ctx.sock).protocol) };
    socket.set_id(new_id());
    socket.set_born_ns(now_ns);
    socket.set_flags(flags);
    socket.set_family(low_u16(family));
    socket.set_protocol(low_u16(protocol));
}
