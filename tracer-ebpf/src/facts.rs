//! What is known of a socket, as the kernel side keeps it and hands it over.

use crate::annotation::{LABEL_MAX, Owner};
use crate::layout::shared;

/// `family` of IPv4 sockets (linux/socket.h).
pub const AF_INET: u16 = 2;
/// `family` of IPv6 sockets (linux/socket.h).
pub const AF_INET6: u16 = 10;
/// `protocol` of TCP sockets (linux/in.h).
pub const IPPROTO_TCP: u16 = 6;
/// `protocol` of UDP sockets (linux/in.h).
pub const IPPROTO_UDP: u16 = 17;
/// `protocol` of MPTCP sockets (linux/in.h).
pub const IPPROTO_MPTCP: u16 = 262;

/// Bits of [`Facts::flags`].
pub mod fact {
    /// A listener's child: born by a handshake, not by `socket(2)`.
    pub const CHILD: u32 = 1;
    /// A file descriptor for it was seen: it was created, annotated, released, or the witness met
    /// it.
    pub const HELD: u32 = 1 << 1;
    /// The last file descriptor is gone, and its event is emitted.
    pub const RELEASED: u32 = 1 << 2;
    /// It listened.
    pub const LISTENER: u32 = 1 << 3;
    /// It sent the SYN itself, or is a UDP socket with a target.
    pub const DIALED: u32 = 1 << 4;
    /// It was bound to an owner at least once.
    pub const BOUND: u32 = 1 << 5;
    /// A walk met it and no hook had seen it before: it may have existed before the tracer did.
    /// `born_ns` is when that was.
    pub const ADOPTED: u32 = 1 << 6;
    /// The peer's FIN was received, which TCP counts as a byte.
    pub const PEER_FIN: u32 = 1 << 7;
    /// Its own FIN was acknowledged, which TCP counts as a byte.
    pub const OWN_FIN: u32 = 1 << 8;
    /// It was made in another cgroup than the audited one: no hook runs for it, and only walks meet
    /// it.
    pub const FOREIGN: u32 = 1 << 9;
    /// TCP does not call the programs for it: walks tell what TCP does to it.
    pub const UNWATCHED: u32 = 1 << 10;
    /// A walk saw that it stayed in CLOSE_WAIT for too long. Of those that are not
    /// [`UNWATCHED`], the hooks know when they left it.
    pub const LATE: u32 = 1 << 11;
}

shared! {
    /// What the kernel side keeps of one socket, without the label. What every connection needs
    /// comes first, since the CPUs of both ends pull at it.
    pub struct Facts {
        /// The socket's identity: a number given at first sight, never reused. The CPU is in the
        /// top 16 bits.
        pub id: u64,
        /// When it was created, or when the handshake of a listener's child ended.
        pub born_ns: u64,
        /// When a file descriptor of it was first seen: its birth, or for a listener's child the
        /// first of an accept that asks for the address, an annotation, a sighting and the release.
        pub held_ns: u64,
        /// When it was bound to its present owner.
        pub bound_ns: u64,
        /// When TCP entered CLOSE_WAIT, or sent its last byte there, which is counted as it leaves
        /// that state; 0 again when it left it within grace.
        pub peer_done_ns: u64,
        /// When TCP fell back to CLOSE after it had left it, or did not leave it though it was told
        /// to connect.
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
        /// The process (tgid) that created it, or first asked for the address of a listener's
        /// child, as accept does, or bound it; 0 before.
        pub opener: u32,
        /// How long the present owner's label is, in bytes.
        pub label_len: u32,
        /// The kernel's socket cookie; 0 of a socket whose birth no hook saw, until a walk meets it
        /// or it overstays. Sockets accepted by MPTCP share their listener's.
        pub cookie: u64,
        /// `task_struct.comm` of the opener's first thread.
        pub comm: [u8; 16],
        /// Local address; IPv4 in the first four bytes.
        pub local: [u8; 16],
        /// The present owner; meaningful when `bound_ns` is not 0.
        pub owner: Owner,
    } is 160 bytes
}

shared! {
    /// What is kept of a socket.
    pub struct Socket {
        /// Everything but the label.
        pub facts: Facts,
        /// The present owner's label, `facts.label_len` bytes of UTF-8.
        pub label: [u8; LABEL_MAX],
    } is 224 bytes
}

shared! {
    /// When the requests that matter to a socket ended, looked up as the record was made.
    pub struct Ends {
        /// END of the owner itself.
        pub own_ns: u64,
        /// END of the owner's whole session.
        pub session_ns: u64,
    } is 16 bytes
}
