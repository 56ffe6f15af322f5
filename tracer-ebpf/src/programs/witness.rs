//! `iter/task_file`: every open file descriptor of every task, and what the storage says of those
//! that are sockets.

mod adopt;

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_seq_write, bpf_sock_from_file};
use tracer_abi::facts::{AF_INET, AF_INET6, Ends, IPPROTO_MPTCP, IPPROTO_TCP};
use tracer_abi::scope;
use tracer_abi::sighting::{KNOWN, Sighting, TCP_READ};

use super::tcp::TCP_LISTEN;
use crate::kernel::{self, Sock, Task, now_ns, offset, size_u32};
use crate::rules::TCP_CLOSE_WAIT;
use crate::socket::SocketRef;
use crate::storage::{self, hold};

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c).
#[repr(C)]
struct TaskFile {
    meta: *mut Meta,
    task: *mut c_void,
    fd: u32,
    file: *mut c_void,
}

/// `struct bpf_iter_meta` (linux/bpf.h).
#[repr(C)]
struct Meta {
    seq: *mut c_void,
}

/// `int bpf_iter_task_file(struct bpf_iter_meta *meta, struct task_struct *task, u32 fd,
/// struct file *file)`.
#[unsafe(link_section = "iter/task_file")]
#[unsafe(no_mangle)]
extern "C" fn witness(ctx: *mut TaskFile) -> i32 {
    // SAFETY: the kernel passes this struct.
    let (meta, task, fd, file) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).fd, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    // SAFETY: `file` is a `struct file *` that is not null.
    let socket = unsafe { bpf_sock_from_file(file.cast()) }.cast::<c_void>();
    if socket.is_null() {
        return 0;
    }
    let at = offset!(socket_sk);
    // SAFETY: a typed load of `socket.sk`, at an offset that the verifier knows as a constant.
    let sk = unsafe { ptr::read_volatile(socket.byte_add(at).cast::<*mut c_void>()) };
    if sk.is_null() {
        return 0;
    }
    // SAFETY: `meta` is never null in an iterator; the others are what the kernel says, not null.
    let (out, task, sk) = unsafe { (Output((*meta).seq), Task::new(task), Sock::new(sk)) };
    sight(&out, task, fd, sk);
    0
}

#[inline(always)]
fn sight(out: &Output, task: Task, fd: u32, sk: Sock) {
    // SAFETY: `sk` is a socket, as the verifier knows.
    let cookie = unsafe { bpf_get_socket_cookie(sk.as_ptr()) };
    let found = storage::lookup(sk, || cookie).or_else(|| accepted(sk));
    let tgid = task.tgid();
    let is_tracer = tgid == kernel::tracer();
    let is_everywhere = kernel::has_scope(scope::MACHINE);
    // Of what is not in the audit, only what its processes have matters, and what they may inherit.
    if found.is_none() && !is_everywhere && !is_tracer && !storage::belongs(task) {
        return;
    }
    let known = found.or_else(|| {
        if is_tracer {
            None
        } else {
            adopt::adopt(task, sk)
        }
    });
    let family = sk.read::<u16>(offset!(sock_family)).unwrap_or(0);
    let local_port = if is_internet(family) {
        adopt::local_port(sk).unwrap_or(0)
    } else {
        0
    };
    let mut sighting = Sighting {
        tgid,
        fd,
        flags: 0,
        state: u32::from(sk.read::<u8>(offset!(sock_state)).unwrap_or(0)),
        family,
        protocol: sk.read::<u16>(offset!(sock_protocol)).unwrap_or(0),
        local_port,
        reserved: 0,
        ends: Ends {
            own_ns: 0,
            session_ns: 0,
        },
        bytes_received: 0,
        bytes_acked: 0,
        unread: 0,
        unsent: 0,
        sent_ns: 0,
        cookie,
    };
    if let Some(socket) = known {
        hold(socket, now_ns);
        socket.set_cookie(cookie);
        adopt::follow(socket, sk);
        sighting.flags |= KNOWN | storage::annotates_bit(socket, task, || tgid);
        sighting.ends = storage::ends(socket);
        tcp_counters(&mut sighting, sk);
    } else if is_tracer && !is_internet(sighting.family) {
        return;
    }
    // SAFETY: a variable of our own, and a map's value.
    unsafe {
        out.write(&raw const sighting);
        if let Some(socket) = known {
            out.write(socket.as_ptr().cast_const());
        }
    }
}

#[inline(always)]
pub(super) const fn is_internet(family: u16) -> bool {
    family == AF_INET || family == AF_INET6
}

/// Gives a record to a socket of the audit that no hook saw as it was accepted: MPTCP makes them
/// so.
#[inline(always)]
fn accepted(sk: Sock) -> Option<SocketRef> {
    let protocol = sk.read::<u16>(offset!(sock_protocol))?;
    if protocol != IPPROTO_MPTCP || !sk.is_made_inside() {
        return None;
    }
    storage::create_accepted(sk, sk.read::<u16>(offset!(sock_family))?, protocol)
}

/// Reads TCP's own counters; a socket that listens has none that mean anything.
#[inline(always)]
fn tcp_counters(sighting: &mut Sighting, sk: Sock) {
    if sighting.protocol != IPPROTO_TCP || sighting.state == TCP_LISTEN {
        return;
    }
    let counters = (
        sk.read::<u64>(offset!(tcp_bytes_received)),
        sk.read::<u64>(offset!(tcp_bytes_acked)),
        sk.read::<u32>(offset!(tcp_rcv_nxt)),
        sk.read::<u32>(offset!(tcp_copied_seq)),
        sk.read::<u32>(offset!(tcp_write_seq)),
        sk.read::<u32>(offset!(tcp_snd_una)),
    );
    if let (Some(received), Some(acked), Some(next), Some(copied), Some(written), Some(una)) =
        counters
    {
        sighting.flags |= TCP_READ;
        sighting.bytes_received = received;
        sighting.bytes_acked = acked;
        sighting.unread = next.wrapping_sub(copied);
        sighting.unsent = written.wrapping_sub(una);
        if sighting.state == TCP_CLOSE_WAIT {
            sighting.sent_ns = sk.sent_ns(now_ns());
        }
    }
}

/// What the reader of the iterator gets (`struct seq_file`).
struct Output(*mut c_void);

impl Output {
    /// Writes a record. An overflow makes the kernel call this program again with room.
    ///
    /// # Safety
    ///
    /// `record` must be readable for its size, and the verifier must know that it is.
    #[inline(always)]
    unsafe fn write<T>(&self, record: *const T) {
        let size = size_u32(size_of::<T>());
        // SAFETY: the caller's promise.
        unsafe { bpf_seq_write(self.0.cast(), record.cast::<c_void>(), size) };
    }
}
