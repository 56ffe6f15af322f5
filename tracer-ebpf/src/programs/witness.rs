//! `iter/task_file`: every open file descriptor of every task, and what the storage says of those that are sockets.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_seq_write, bpf_sock_from_file};
use tracer_abi::facts::{AF_INET, AF_INET6, Ends, IPPROTO_MPTCP, IPPROTO_TCP, Socket};
use tracer_abi::sighting::{KNOWN, Sighting, TCP_READ};

use crate::kernel::{self, offset, read};
use crate::storage::{self, held, now_ns};

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

/// `int bpf_iter_task_file(struct bpf_iter_meta *meta, struct task_struct *task, u32 fd, struct file *file)`.
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
    // SAFETY: `meta` is never null in an iterator.
    let seq = unsafe { (*meta).seq };
    sight(seq, task, fd, sk);
    0
}

#[inline(always)]
fn sight(seq: *mut c_void, task: *mut c_void, fd: u32, sk: *mut c_void) {
    // SAFETY: `sk` is a socket, as the verifier knows.
    let cookie = unsafe { bpf_get_socket_cookie(sk) };
    let known = storage::lookup(sk, || cookie).or_else(|| met(sk));
    let tgid = kernel::tgid_of(task);
    // Of what is not in the audit, only what its processes have matters, and what they may inherit.
    if known.is_none()
        && tgid != kernel::tracer()
        && !storage::is_member(kernel::initial_tgid_of(task))
    {
        return;
    }
    let mut sighting = Sighting {
        tgid,
        fd,
        flags: 0,
        state: u32::from(read::<u8>(sk, offset!(sock_state)).unwrap_or(0)),
        family: read::<u16>(sk, offset!(sock_family)).unwrap_or(0),
        protocol: read::<u16>(sk, offset!(sock_protocol)).unwrap_or(0),
        local_port: read::<u16>(sk, offset!(sock_num)).unwrap_or(0),
        reserved: 0,
        ends: Ends {
            own_ns: 0,
            session_ns: 0,
        },
        bytes_received: 0,
        bytes_acked: 0,
        unread: 0,
        unsent: 0,
    };
    if let Some(socket) = known {
        held(socket, now_ns);
        // SAFETY: `socket` comes from the storage.
        let facts = unsafe { &mut (*socket.as_ptr()).facts };
        facts.cookie = cookie;
        sighting.flags |= KNOWN | storage::annotates_bit(facts, || tgid);
        sighting.ends = storage::ends(facts);
        tcp_counters(&mut sighting, sk);
    } else if sighting.family != AF_INET && sighting.family != AF_INET6 {
        return;
    }
    write(seq, &raw const sighting);
    if let Some(socket) = known {
        write(seq, socket.as_ptr().cast_const());
    }
}

/// Meets a socket of the audit that no hook saw as it was accepted: MPTCP makes them so.
#[inline(always)]
fn met(sk: *mut c_void) -> Option<NonNull<Socket>> {
    let protocol = read::<u16>(sk, offset!(sock_protocol))?;
    if protocol != IPPROTO_MPTCP || !kernel::is_made_inside(sk) {
        return None;
    }
    storage::met_accepted(sk, read::<u16>(sk, offset!(sock_family))?, protocol)
}

/// Reads TCP's own counters; a socket that listens has none that mean anything.
#[inline(always)]
fn tcp_counters(sighting: &mut Sighting, sk: *mut c_void) {
    const TCP_LISTEN: u32 = 10;
    if sighting.protocol != IPPROTO_TCP || sighting.state == TCP_LISTEN {
        return;
    }
    let counters = (
        read::<u64>(sk, offset!(tcp_bytes_received)),
        read::<u64>(sk, offset!(tcp_bytes_acked)),
        read::<u32>(sk, offset!(tcp_rcv_nxt)),
        read::<u32>(sk, offset!(tcp_copied_seq)),
        read::<u32>(sk, offset!(tcp_write_seq)),
        read::<u32>(sk, offset!(tcp_snd_una)),
    );
    if let (Some(received), Some(acked), Some(next), Some(copied), Some(written), Some(una)) =
        counters
    {
        sighting.flags |= TCP_READ;
        sighting.bytes_received = received;
        sighting.bytes_acked = acked;
        sighting.unread = next.wrapping_sub(copied);
        sighting.unsent = written.wrapping_sub(una);
    }
}

#[inline(always)]
fn write<T>(seq: *mut c_void, record: *const T) {
    // SAFETY: `record` is readable for its size. An overflow makes the kernel call this program again with room.
    unsafe { bpf_seq_write(seq.cast(), record.cast::<c_void>(), size_of::<T>() as u32) };
}
