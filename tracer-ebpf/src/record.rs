//! The records of the rings: what happened, from the kernel to user space.

use crate::annotation::Owner;
use crate::facts::{Ends, Facts, Socket};
use crate::layout::shared;

/// [`Head::kind`]: `socket(2)` made a socket. A [`BriefEvent`].
pub const CREATED: u32 = 1;
/// [`Head::kind`]: a handshake gave a listener a child; nobody has accepted it yet. A
/// [`BriefEvent`].
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
/// [`Head::kind`]: the last file descriptor is gone, longer than grace after it should have been,
/// or because its process exited. An [`OverstayEvent`].
pub const OVERSTAYED: u32 = 8;
/// [`Head::kind`]: a process of the audit left its cgroup. A [`LeftEvent`].
pub const LEFT: u32 = 9;
/// [`Head::kind`]: a socket begins anew that broke a rule until now: it is about to be bound, to
/// connect or to listen, which hides what it was. An [`OverstayEvent`] of that.
pub const RENEWED: u32 = 10;

/// Bit of [`Head::flags`]: the process that did it was exiting (`PF_EXITING`).
pub const BY_EXIT: u32 = 1;
/// Bit of [`Head::flags`] in OVERSTAYED and of
/// [`Sighting::flags`](crate::sighting::Sighting::flags): the process that opened the socket, or
/// has it if that is not known, has annotated at least once. In OVERSTAYED only where that
/// matters: the socket was bound to no owner for longer than grace.
pub const ANNOTATES: u32 = 1 << 8;

shared! {
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

shared! {
    /// The few facts that tell a socket apart: most records need no more, and they are most of what
    /// the ring carries.
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

shared! {
    /// An event with the few facts of its socket.
    pub struct BriefEvent {
        /// Kind and time.
        pub head: Head,
        /// The socket.
        pub brief: Brief,
    } is 40 bytes
}

shared! {
    /// A RELEASED event: what the statistics need. Nearly every socket ends with it, so it is kept
    /// small.
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
        /// [`Facts::local_port`].
        pub local_port: u16,
        /// Zero.
        pub reserved: u32,
    } is 72 bytes
}

shared! {
    /// A BOUND event. The label comes with the walk that meets the socket, or with its violation.
    pub struct BoundEvent {
        /// Kind and time.
        pub head: Head,
        /// The socket.
        pub brief: Brief,
        /// The owner.
        pub owner: Owner,
        /// The process that sent it, by its number in the tracer's PID namespace.
        pub tgid: u32,
        /// [`Facts::role`].
        pub role: u16,
        /// [`Facts::state`].
        pub state: u16,
    } is 64 bytes
}

shared! {
    /// An ENDED event.
    pub struct EndedEvent {
        /// Kind and time.
        pub head: Head,
        /// The owner.
        pub owner: Owner,
        /// The process that sent it, by its number in the tracer's PID namespace.
        pub tgid: u32,
        /// The reason given.
        pub reason: u32,
    } is 40 bytes
}

shared! {
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

shared! {
    /// An OVERSTAYED or RENEWED event: all that is known of a socket that stayed too long, or until
    /// its process exited.
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

/// How much of a stack is taken at once: where a read runs into the stack's end, the parts before
/// it stay.
pub const STACK_PART: usize = 1 << 10;
/// How much of a stack is taken at most, in bytes.
pub const STACK_BYTES: usize = 16 * STACK_PART;

/// The user stack of the thread that opened or accepted a socket, as it was in the system call. It
/// has a ring of its own.
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
