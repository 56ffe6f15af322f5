//! The rules that a socket can break, as far as they must be judged when it happens.

use tracer_abi::annotation::Role;
use tracer_abi::facts::{Ends, IPPROTO_TCP, fact};

use crate::emit;
use crate::kernel::{self, Sock, Task};
use crate::socket::SocketRef;
use crate::storage;

/// `TCP_CLOSE_WAIT` (net/tcp_states.h).
pub(crate) const TCP_CLOSE_WAIT: u32 = 8;

/// Returns when the request that the socket serves was over, by its own END or its session's; 0
/// when it is not.
#[inline(always)]
pub(crate) fn over_ns(socket: SocketRef, ends: &Ends) -> u64 {
    let end_ns = if ends.own_ns != 0 {
        ends.own_ns
    } else {
        ends.session_ns
    };
    if end_ns == 0 || is_pooled(socket) {
        return 0;
    }
    // A BIND to an owner that has already ended starts its grace at the BIND.
    end_ns.max(socket.bound_ns())
}

/// What TCP did to a connection while it was pooled counts from the BIND that takes it out: only
/// idleness counted before.
#[inline(always)]
pub(crate) fn leave_pool(socket: SocketRef, now_ns: u64) {
    if !is_pooled(socket) {
        return;
    }
    if socket.peer_done_ns() != 0 {
        socket.set_peer_done_ns(now_ns);
    }
    if socket.dead_ns() != 0 {
        socket.set_dead_ns(now_ns);
    }
}

/// In CLOSE_WAIT, the clock starts again with each byte that is sent: the peer may have finished
/// its half and still read.
#[inline(always)]
pub(crate) fn count_sent(socket: SocketRef, sk: Sock, now_ns: u64) {
    let peer_done_ns = socket.peer_done_ns();
    if peer_done_ns != 0 && sk.state() == Some(TCP_CLOSE_WAIT) {
        socket.set_peer_done_ns(peer_done_ns.max(sk.sent_ns(now_ns)));
    }
}

/// TCP leaves CLOSE_WAIT by its own FIN or a reset. Within grace, or where the rule did not apply,
/// that was in time; otherwise the rule was broken already.
#[inline(always)]
pub(crate) fn leave_close_wait(socket: SocketRef, sk: Option<Sock>, now_ns: u64) {
    if let Some(sk) = sk {
        count_sent(socket, sk, now_ns);
    }
    let held_ns = socket.held_ns();
    let applied = held_ns != 0 && !is_pooled(socket);
    if !applied || !overstayed(socket.peer_done_ns().max(held_ns), now_ns) {
        socket.set_peer_done_ns(0);
    }
}

/// A walk meets a socket in CLOSE_WAIT that TCP does not call the programs for.
#[inline(always)]
pub(crate) fn stay_in_close_wait(socket: SocketRef, sk: Sock, now_ns: u64) {
    count_sent(socket, sk, now_ns);
    let since_ns = socket.peer_done_ns().max(socket.held_ns());
    if !is_pooled(socket) && overstayed(since_ns, now_ns) {
        socket.mark(fact::LATE);
    }
}

/// Such a socket has left CLOSE_WAIT, and nobody knows when: only if a walk saw it there too late,
/// the rule was broken.
#[inline(always)]
pub(crate) fn leave_close_wait_unseen(socket: SocketRef) {
    if socket.flags() & (fact::UNWATCHED | fact::LATE) == fact::UNWATCHED {
        socket.set_peer_done_ns(0);
    }
}

/// Whether the socket is kept alive between requests: judged by idleness only.
#[inline(always)]
fn is_pooled(socket: SocketRef) -> bool {
    socket.bound_ns() != 0 && socket.role() == Role::Pool as u16
}

/// Whether a socket that goes away now should have done so longer than grace ago, by its owner or
/// by TCP.
#[inline(always)]
pub(crate) fn is_late(socket: SocketRef, ends: &Ends, now_ns: u64) -> bool {
    if is_pooled(socket) {
        return false;
    }
    let bound_ns = socket.bound_ns();
    let outlived = |end_ns: u64| end_ns != 0 && overstayed(end_ns.max(bound_ns), now_ns);
    outlived(ends.own_ns) || outlived(ends.session_ns) || is_stuck_unpooled(socket, now_ns)
}

/// Whether TCP has been done with a socket for longer than grace.
#[inline(always)]
fn is_stuck(socket: SocketRef, now_ns: u64) -> bool {
    !is_pooled(socket) && is_stuck_unpooled(socket, now_ns)
}

/// The same, of a socket that is not pooled.
#[inline(always)]
fn is_stuck_unpooled(socket: SocketRef, now_ns: u64) -> bool {
    // What happened in a listener's backlog is nobody's fault until there is a descriptor.
    let held_ns = socket.held_ns();
    let stuck = |since_ns: u64| since_ns != 0 && overstayed(since_ns.max(held_ns), now_ns);
    stuck(socket.peer_done_ns()) || stuck(socket.dead_ns())
}

/// Forgets what TCP did to a socket that connects or listens at `now_ns`, perhaps not for the first
/// time. If it was too late for that, the violation is emitted.
#[inline(always)]
pub(crate) fn begin_anew(socket: SocketRef, now_ns: u64) {
    if is_stuck(socket, now_ns) {
        let ends = storage::ends(socket);
        emit::renewed(now_ns, 0, kernel::tgid(), socket, ends);
    }
    socket.set_peer_done_ns(0);
    socket.set_dead_ns(0);
    socket.set_state(0);
}

/// Returns [`ANNOTATES`](tracer_abi::record::ANNOTATES) when a process that annotates should have
/// bound the socket to an owner by now; `tgid` is the current process's.
#[inline(always)]
pub(crate) fn unowned_bit(socket: SocketRef, now_ns: u64, tgid: impl FnOnce() -> u32) -> u32 {
    let owed = socket.protocol() == IPPROTO_TCP && socket.bound_ns() == 0;
    if owed && overstayed(socket.held_ns(), now_ns) {
        storage::annotates_bit(socket, Task::current(), tgid)
    } else {
        0
    }
}

#[inline(always)]
fn overstayed(since_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(since_ns) > kernel::grace_ns()
}
