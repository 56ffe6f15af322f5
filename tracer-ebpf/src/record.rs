//! The records that cross from the kernel to user space.
//!
//! Everything is native-endian and `repr(C)` without padding, so that user space decodes in safe code. Times are
//! `bpf_ktime_get_ns`, that is CLOCK_MONOTONIC in nanoseconds; a time of 0 means "has not happened".

use crate::annotation::{LABEL_MAX, Owner};

/// Adds the safe decoding that user space needs and the kernel side does not.
macro_rules! record {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($body:tt)* } is $size:literal bytes) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(
            feature = "decode",
            derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
        )]
        #[repr(C)]
        $vis struct $name { $($body)* }

        const _: () = assert!(size_of::<$name>() == $size);
    };
}

/// `family` of IPv4 sockets (linux/socket.h).
pub const AF_INET: u16 = 2;
/// `family` of IPv6 sockets (linux/socket.h).
pub const AF_INET6: u16 = 10;
/// `protocol` of TCP sockets (linux/in.h).
pub const IPPROTO_TCP: u16 = 6;
/// `protocol` of MPTCP sockets (linux/in.h).
pub const IPPROTO_MPTCP: u16 = 262;

/// Bits of [`Facts::flags`].
pub mod fact {
    /// A listener's child: born by a handshake, not by `socket(2)`.
    pub const CHILD: u32 = 1;
    /// A file descriptor for it was seen: it was created, annotated, released, or the witness met it.
    pub const HELD: u32 = 1 << 1;
    /// The last file descriptor is gone.
    pub const RELEASED: u32 = 1 << 2;
    /// It listened.
    pub const LISTENER: u32 = 1 << 3;
    /// It sent the SYN itself.
    pub const DIALED: u32 = 1 << 4;
    /// It was bound to an owner at least once.
    pub const BOUND: u32 = 1 << 5;
    /// It existed before the tracer did.
    pub const ADOPTED: u32 = 1 << 6;
    /// The peer's FIN was received, which TCP counts as a byte.
    pub const PEER_FIN: u32 = 1 << 7;
    /// Its own FIN was acknowledged, which TCP counts as a byte.
    pub const OWN_FIN: u32 = 1 << 8;
}

record! {
    /// What the kernel keeps of one socket in its `sk_storage`, without the label. What every connection needs comes first: the
    /// kernel puts eight bytes of its own before it, and 56 more make a cache line, which the CPUs of both ends pull at.
    pub struct Facts {
        /// The socket's identity: a number given at first sight, never reused. The CPU is in the top 16 bits.
        pub id: u64,
        /// When it was created, or when the handshake of a listener's child ended.
        pub born_ns: u64,
        /// When a file descriptor of it was first seen: its birth, or for a listener's child the first of an accept that asks
        /// for the address, an annotation, a sighting and the release.
        pub held_ns: u64,
        /// When it was bound to its present owner.
        pub bound_ns: u64,
        /// When TCP entered CLOSE_WAIT; 0 again when it left it within grace.
        pub peer_done_ns: u64,
        /// When TCP fell back to CLOSE after it had left it, or did not leave it though it was told to connect.
        pub dead_ns: u64,
        /// See [`fact`].
        pub flags: u32,
        /// `AF_*`.
        pub family: u16,
        /// `IPPROTO_*`; 262 is MPTCP.
        pub protocol: u16,
        /// Remote address; IPv4 in the first four bytes.
        pub remote: [u8; 16],
        /// `tcp_sock.bytes_received` as TCP entered `state`; a FIN counts as a byte.
        pub bytes_received: u64,
        /// `tcp_sock.bytes_acked` as TCP entered `state`; a SYN and a FIN count as a byte each.
        pub bytes_acked: u64,
        /// Remote port in host order.
        pub remote_port: u16,
        /// Local port in host order.
        pub local_port: u16,
        /// CLOSE_WAIT or CLOSE (net/tcp_states.h), whichever TCP entered last; 0 before.
        pub state: u16,
        /// [`Role`](crate::annotation::Role) of the present owner.
        pub role: u16,
        /// The process (tgid) that created it; 0 for a listener's child until a process is seen with it.
        pub opener: u32,
        /// How long the present owner's label is, in bytes.
        pub label_len: u32,
        /// The kernel's socket cookie; 0 until a walk meets the socket or it overstays. Sockets accepted by MPTCP share their
        /// listener's.
        pub cookie: u64,
        /// `task_struct.comm` of the opener's first thread.
        pub comm: [u8; 16],
        /// Local address; IPv4 in the first four bytes.
        pub local: [u8; 16],
        /// The present owner; meaningful when `bound_ns` is not 0.
        pub owner: Owner,
    } is 160 bytes
}

record! {
    /// A socket with its label.
    pub struct Socket {
        /// Everything but the label.
        pub facts: Facts,
        /// The present owner's label, `facts.label_len` bytes of UTF-8.
        pub label: [u8; LABEL_MAX],
    } is 224 bytes
}

record! {
    /// When the requests that matter to a socket ended, looked up as the record was made.
    pub struct Ends {
        /// END of the owner itself.
        pub own_ns: u64,
        /// END of the owner's whole session.
        pub session_ns: u64,
    } is 16 bytes
}

/// [`Head::kind`]: `socket(2)` made a socket. A [`BriefEvent`].
pub const CREATED: u32 = 1;
/// [`Head::kind`]: a handshake gave a listener a child; nobody has accepted it yet. A [`BriefEvent`].
pub const ARRIVED: u32 = 2;
/// [`Head::kind`]: a BIND. A [`BoundEvent`].
pub const BOUND: u32 = 3;
/// [`Head::kind`]: the first END of an owner. An [`EndedEvent`].
pub const ENDED: u32 = 4;
/// [`Head::kind`]: TCP entered CLOSE_WAIT while a file descriptor may be open. A [`BriefEvent`].
pub const PEER_DONE: u32 = 5;
/// [`Head::kind`]: TCP fell to CLOSE while a file descriptor may be open. A [`BriefEvent`].
pub const DIED: u32 = 6;
/// [`Head::kind`]: the last file descriptor is gone, in time and not by exit. A [`ReleaseEvent`].
pub const RELEASED: u32 = 7;
/// [`Head::kind`]: the last file descriptor is gone, longer than grace after it should have been, or because its process
/// exited. An [`OverstayEvent`].
pub const OVERSTAYED: u32 = 8;
/// [`Head::kind`]: a process of the audit left its cgroup. A [`LeftEvent`].
pub const LEFT: u32 = 9;
/// [`Head::kind`]: a socket is about to be bound anew, longer than grace after its owner ended. An [`OverstayEvent`] of what it
/// was until now; a BOUND follows.
pub const REBOUND: u32 = 10;

/// Bit of [`Head::flags`]: the process that did it was exiting (`PF_EXITING`).
pub const BY_EXIT: u32 = 1;
/// Bit of [`Head::flags`] in OVERSTAYED and of [`Sighting::flags`]: the process that opened the socket, or has it if that
/// is not known, has told the kernel of an owner at least once. In OVERSTAYED only where that matters: the socket was bound to
/// nobody for longer than grace.
pub const ANNOTATES: u32 = 1 << 8;

record! {
    /// What every record of the rings begins with; what follows depends on `kind`.
    pub struct Head {
        /// One of the constants of this module.
        pub kind: u32,
        /// See [`BY_EXIT`] and [`ANNOTATES`].
        pub flags: u32,
        /// When it happened.
        pub at_ns: u64,
    } is 16 bytes
}

record! {
    /// The few facts that tell a socket apart: most records need no more, and they are most of what the ring carries.
    pub struct Brief {
        /// [`Facts::id`].
        pub id: u64,
        /// [`Facts::born_ns`].
        pub born_ns: u64,
        /// [`Facts::flags`].
        pub flags: u32,
        /// [`Facts::family`].
        pub family: u16,
        /// [`Facts::protocol`].
        pub protocol: u16,
    } is 24 bytes
}

impl From<&Facts> for Brief {
    #[inline(always)]
    fn from(facts: &Facts) -> Self {
        Self {
            id: facts.id,
            born_ns: facts.born_ns,
            flags: facts.flags,
            family: facts.family,
            protocol: facts.protocol,
        }
    }
}

record! {
    /// An event with the few facts of its socket.
    pub struct BriefEvent {
        /// Kind and time.
        pub head: Head,
        /// The socket.
        pub brief: Brief,
    } is 40 bytes
}

record! {
    /// A RELEASED event: what the statistics need. Nearly every socket ends with it, so it is kept small.
    pub struct ReleaseEvent {
        /// Kind and time.
        pub head: Head,
        /// The socket.
        pub brief: Brief,
        /// When the request that it served was over; 0 when it served none or the request was not.
        pub over_ns: u64,
        /// [`Facts::remote`].
        pub remote: [u8; 16],
        /// [`Facts::remote_port`].
        pub remote_port: u16,
        /// Zero.
        pub reserved: [u16; 3],
    } is 72 bytes
}

record! {
    /// A BOUND event. The label comes with the walk that meets the socket, or with its violation.
    pub struct BoundEvent {
        /// Kind and time.
        pub head: Head,
        /// The socket.
        pub brief: Brief,
        /// The owner.
        pub owner: Owner,
        /// The process that told it, by its number in the tracer's PID namespace.
        pub tgid: u32,
        /// [`Facts::role`].
        pub role: u16,
        /// Zero.
        pub reserved: u16,
    } is 64 bytes
}

record! {
    /// An ENDED event.
    pub struct EndedEvent {
        /// Kind and time.
        pub head: Head,
        /// The owner.
        pub owner: Owner,
        /// The process that told it, by its number in the tracer's PID namespace.
        pub tgid: u32,
        /// The reason given.
        pub reason: u32,
    } is 40 bytes
}

record! {
    /// A LEFT event.
    pub struct LeftEvent {
        /// Kind and time.
        pub head: Head,
        /// The process, by its number in the tracer's PID namespace.
        pub tgid: u32,
        /// Zero.
        pub reserved: u32,
        /// `task_struct.comm` of its first thread.
        pub comm: [u8; 16],
    } is 40 bytes
}

record! {
    /// An OVERSTAYED or REBOUND event: all that is known of a socket that stayed too long, or until its process exited.
    pub struct OverstayEvent {
        /// Kind, flags and time.
        pub head: Head,
        /// The process in whose context it happened, by its number in the tracer's PID namespace.
        pub tgid: u32,
        /// Zero.
        pub reserved: u32,
        /// `task_struct.comm` of its first thread.
        pub comm: [u8; 16],
        /// Ends of the owner.
        pub ends: Ends,
        /// The socket.
        pub socket: Socket,
    } is 280 bytes
}

/// How much of a stack is taken at once: where a read runs into the stack's end, the parts before it stay.
pub const STACK_PART: usize = 1 << 10;
/// How much of a stack is taken at most, in bytes.
pub const STACK_BYTES: usize = 16 * STACK_PART;
/// The size in bytes of the ring for stacks where they are wanted: about 500 of them.
pub const STACKS_BYTES: u32 = 8 << 20;

/// The user stack of the thread that opened or accepted a socket, as it was in the system call. It has a ring of its own.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "decode",
    derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct StackRecord {
    /// [`Facts::id`] of the socket.
    pub id: u64,
    /// The process, by its number in the tracer's PID namespace.
    pub tgid: u32,
    /// Bytes of `stack` in use.
    pub length: u32,
    /// The instruction pointer.
    pub ip: u64,
    /// The stack pointer: where `stack` begins.
    pub sp: u64,
    /// The frame pointer.
    pub bp: u64,
    /// What lies on the stack.
    pub stack: [u8; STACK_BYTES],
}

const _: () = assert!(size_of::<StackRecord>() == 40 + STACK_BYTES);

/// Bit of [`Sighting::flags`]: the kernel's counters of this TCP socket could be read.
pub const TCP_READ: u32 = 1;
/// Bit of [`Sighting::flags`]: the socket is in the ledger of this tracer; [`Socket`] follows.
pub const KNOWN: u32 = 1 << 1;

record! {
    /// One open file descriptor of a socket, as the witness (`iter/task_file`) met it. A [`Socket`] follows when
    /// [`KNOWN`] is set.
    pub struct Sighting {
        /// The process (tgid) that holds it, by its number in the tracer's PID namespace; 0 when it has none there.
        pub tgid: u32,
        /// The file descriptor's number.
        pub fd: u32,
        /// See [`TCP_READ`], [`KNOWN`] and [`ANNOTATES`].
        pub flags: u32,
        /// `TCP_*` (`sock_common.skc_state`).
        pub state: u32,
        /// `AF_*`.
        pub family: u16,
        /// `IPPROTO_*`.
        pub protocol: u16,
        /// `AF_INET*` listeners and bound sockets: `sock_common.skc_num`, the local port.
        pub local_port: u16,
        /// Zero.
        pub reserved: u16,
        /// Ends of its present owner.
        pub ends: Ends,
        /// `tcp_sock.bytes_received`.
        pub bytes_received: u64,
        /// `tcp_sock.bytes_acked`.
        pub bytes_acked: u64,
        /// Received and not yet read by the program (`rcv_nxt - copied_seq`).
        pub unread: u32,
        /// Written and not yet acknowledged (`write_seq - snd_una`).
        pub unsent: u32,
    } is 64 bytes
}

/// Slots of the per-CPU counters. Counts are since the programs were loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Sockets that existed before and were found by the witness.
    Adopted = 0,
    /// Sockets made by `socket(2)`.
    Created,
    /// Listeners' children seen with a file descriptor for the first time.
    Accepted,
    /// Sockets whose last file descriptor went away.
    Released,
    /// Handshakes that this side began and that succeeded.
    Connected,
    /// Sockets bound to an owner for the first time.
    Tagged,
    /// Owners whose END was told for the first time.
    Ended,
    /// Annotations refused for their form.
    Refused,
    /// Sockets released, or bound anew, longer than grace after they should have been.
    Late,
    /// Sockets that could not be given storage.
    StorageFailures,
    /// Records that found the ring for everything full.
    RingFailures,
    /// ENDs that could not be remembered because the table was full.
    EndFailures,
    /// Sockets of a family without create and release hooks (`AF_UNIX`) that were annotated.
    Unhooked,
    /// Processes that annotate and could not be remembered because the table was full.
    AnnotatorFailures,
    /// Records of violations that found their ring full.
    CaseFailures,
    /// Stacks that found their ring full.
    StackFailures,
    /// Processes that entered the audited cgroup, not born there.
    Entered,
    /// Processes of the audit that left its cgroup.
    Left,
    /// Processes of the audit that could not be remembered because the table was full.
    MemberFailures,
    /// Times that a TCP socket was told to connect and did not begin to, for want of a route, an address or a port. Counted up
    /// at the one and down at the other, each on its own CPU: only the sum, which wraps, means anything.
    Undialed,
}

impl Counter {
    /// How many slots there are.
    pub const COUNT: u32 = Self::Undialed as u32 + 1;
}

/// The inode number of the initial PID namespace (`PID_NS_INIT_INO`, linux/nsfs.h).
pub const PID_NS_INIT_INUM: u32 = 0xefff_fffc;
/// How deep PID namespaces are nested at most (`MAX_PID_NS_LEVEL`, linux/pid_namespace.h).
pub const PID_NS_LEVELS: u32 = 32;
/// How many annotating processes the kernel remembers.
pub const ANNOTATORS_MAX: u32 = 1 << 16;
/// How many processes of the audit live at once at most.
pub const MEMBERS_MAX: u32 = 1 << 16;
/// How deep in the hierarchy the audited cgroup is looked for, from a process's own up.
pub const CGROUP_LEVELS: u32 = 64;
/// How many ENDs the kernel remembers at once: their places are allocated at start, about 23 MB. User space forgets the oldest
/// before it is full.
pub const ENDS_MAX: u32 = 1 << 18;
/// The size in bytes of the ring for everything that happens, unless user space sets another.
pub const RING_BYTES: u32 = 4 << 20;
/// The size in bytes of the ring for violations, which a flood of the other must not drown: about 4,000 of them.
pub const CASES_BYTES: u32 = 1 << 20;

/// Where the fields of kernel structs are that the programs read, in bytes, from this kernel's BTF.
///
/// rustc emits no CO-RE relocations, so user space fills this in before the programs are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "decode",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[repr(C)]
pub struct Offsets {
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.start_time`
    pub task_start_time: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `css_set.dfl_cgrp`
    pub css_set_dfl_cgrp: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `cgroup.self.parent`
    pub cgroup_self_parent: u32,
    /// `cgroup_subsys_state.cgroup`
    pub css_cgroup: u32,
    /// `kernfs_node.id`
    pub kernfs_node_id: u32,
    /// `task_struct.thread_pid`
    pub task_thread_pid: u32,
    /// `pid.level`
    pub pid_level: u32,
    /// `pid.numbers`
    pub pid_numbers: u32,
    /// `upid.ns`
    pub upid_ns: u32,
    /// The size of `struct upid`.
    pub upid_size: u32,
    /// `pid_namespace.ns.inum`
    pub pid_namespace_inum: u32,
    /// `pt_regs.ip`
    pub regs_ip: u32,
    /// `pt_regs.sp`
    pub regs_sp: u32,
    /// `pt_regs.bp`
    pub regs_bp: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// `sock.__sk_common.skc_family`
    pub sock_family: u32,
    /// `sock.__sk_common.skc_state`
    pub sock_state: u32,
    /// `sock.__sk_common.skc_num`
    pub sock_num: u32,
    /// `sock.sk_protocol`
    pub sock_protocol: u32,
    /// `sock.sk_err`
    pub sock_err: u32,
    /// `sock.sk_cgrp_data`
    pub sock_cgrp_data: u32,
    /// `tcp_sock.bytes_received`
    pub tcp_bytes_received: u32,
    /// `tcp_sock.bytes_acked`
    pub tcp_bytes_acked: u32,
    /// `tcp_sock.rcv_nxt`
    pub tcp_rcv_nxt: u32,
    /// `tcp_sock.copied_seq`
    pub tcp_copied_seq: u32,
    /// `tcp_sock.write_seq`
    pub tcp_write_seq: u32,
    /// `tcp_sock.snd_una`
    pub tcp_snd_una: u32,
}
