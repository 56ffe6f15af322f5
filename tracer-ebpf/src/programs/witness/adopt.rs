//! Sockets that were there before the programs were attached, or that no hook runs for: the witness
//! reads what the hooks would have told.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use core::ptr::NonNull;
use tracer_abi::counter::Counter;
use tracer_abi::facts::{AF_INET, IPPROTO_TCP, Socket, fact};
use tracer_abi::scope;

use super::super::tcp::{TCP_CLOSE, TCP_LISTEN};
use super::is_internet;
use crate::counters::count;
use crate::kernel::{self, Sock, Task, low_u16, now_ns, offset};
use crate::rules::{self, TCP_CLOSE_WAIT};
use crate::socket::SocketRef;
use crate::storage::{self, new_id};

const TCP_SYN_SENT: u32 = 2;

/// A socket of the machine, for one record: nothing is kept of it.
#[btf_map]
static MACHINE_SOCKET: PerCpuArray<Socket, 1> = PerCpuArray::new();

/// Gives a record to a socket that a process of the audit holds and no hook has seen. `None` if the
/// audit adopts none like it.
#[inline(always)]
pub(super) fn adopt(task: Task, sk: Sock) -> Option<SocketRef> {
    let is_everywhere = kernel::has_scope(scope::MACHINE);
    let family = sk.read::<u16>(offset!(sock_family))?;
    if kernel::has_scope(scope::COMMAND) || !is_internet(family) {
        return None;
    }
    let socket = if is_everywhere {
        let socket = NonNull::new(MACHINE_SOCKET.get_ptr_mut(0)?)?;
        // SAFETY: a map's value.
        let socket = unsafe { SocketRef::new(socket) };
        socket.clear();
        socket
    } else {
        storage::create(sk)?
    };
    if socket.id() != 0 {
        return Some(socket);
    }
    let now_ns = now_ns();
    let is_foreign = !is_everywhere && !sk.is_made_inside();
    socket.set_id(new_id());
    socket.set_born_ns(now_ns);
    socket.set_held_ns(now_ns);
    socket.set_family(family);
    socket.set_protocol(sk.read::<u16>(offset!(sock_protocol))?);
    socket.set_opener(task.tgid());
    storage::opened_by(socket.opener(), task, now_ns);
    socket.set_comm(task.comm());
    socket.set_flags(fact::HELD | fact::ADOPTED | fact::UNWATCHED);
    if is_foreign {
        socket.mark(fact::FOREIGN);
    } else {
        count(Counter::Adopted);
    }
    describe(socket, sk)?;
    Some(socket)
}

/// Returns the local port in host order. `skc_num` is 0 again once a connection is dead
/// (`inet_put_port`).
#[inline(always)]
pub(super) fn local_port(sk: Sock) -> Option<u16> {
    sk.read::<u16>(offset!(inet_sport)).map(u16::from_be)
}

/// Copies the tuple, and whether it listens or has a target. Whether a listener accepted it, user
/// space knows from the listeners.
#[inline(always)]
fn describe(socket: SocketRef, sk: Sock) -> Option<()> {
    socket.set_local_port(local_port(sk)?);
    let remote_port = u16::from_be(sk.read::<u16>(offset!(sock_dport))?);
    socket.set_remote_port(remote_port);
    let is_tcp = socket.protocol() == IPPROTO_TCP;
    if is_tcp && sk.state() == Some(TCP_LISTEN) {
        socket.mark(fact::LISTENER);
    } else if remote_port != 0 && socket.flags() & fact::CHILD == 0 {
        socket.mark(fact::DIALED);
    }
    if socket.family() == AF_INET {
        let local = sk.read::<u32>(offset!(sock_rcv_saddr))?;
        socket.set_addresses::<0>(local, sk.read::<u32>(offset!(sock_daddr))?);
        return Some(());
    }
    let (local_at, remote_at) = (offset!(sock_v6_rcv_saddr), offset!(sock_v6_daddr));
    macro_rules! set_words {
        ($($n:literal)*) => {
            $(socket.set_addresses::<$n>(
                sk.read::<u32>(local_at + 4 * $n)?,
                sk.read::<u32>(remote_at + 4 * $n)?,
            );)*
        };
    }
    set_words!(0 1 2 3);
    Some(())
}

/// Notes what TCP has done to a socket that it does not call the programs for. It counts from now:
/// when it was is not known.
#[inline(always)]
pub(super) fn follow(socket: SocketRef, sk: Sock) {
    if socket.flags() & fact::UNWATCHED == 0 || socket.protocol() != IPPROTO_TCP {
        return;
    }
    if socket.remote_port() == 0 {
        describe(socket, sk);
    }
    let Some(state) = sk.state() else { return };
    let now_ns = now_ns();
    match state {
        TCP_CLOSE_WAIT => {
            if socket.peer_done_ns() == 0 {
                socket.mark(fact::PEER_FIN);
                socket.set_state(low_u16(state));
                socket.set_peer_done_ns(now_ns);
            }
            rules::stay_in_close_wait(socket, sk, now_ns);
            return;
        }
        // One that was never connected is no dead one: it has no target.
        TCP_CLOSE => {
            if socket.dead_ns() == 0 && socket.remote_port() != 0 {
                socket.set_state(low_u16(state));
                socket.set_dead_ns(now_ns);
            }
        }
        TCP_SYN_SENT => socket.set_dead_ns(0),
        _ => {}
    }
    rules::leave_close_wait_unseen(socket);
}
