//! What the witness hands over: open file descriptors, as a stream.

use crate::facts::Ends;
use crate::layout::shared;

/// Bit of [`Sighting::flags`]: the kernel's counters of this TCP socket could be read.
pub const TCP_READ: u32 = 1;
/// Bit of [`Sighting::flags`]: the socket is in the ledger of this tracer; a
/// [`Socket`](crate::facts::Socket) follows.
pub const KNOWN: u32 = 1 << 1;

shared! {
    /// One open file descriptor of a socket, as the witness (`iter/task_file`) met it. Those of
    /// sockets that are not in the ledger are of audited processes, or inherited from the tracer. A
    /// [`Socket`](crate::facts::Socket) follows when [`KNOWN`] is set.
    pub struct Sighting {
        /// The process (tgid) that holds it, by its number in the tracer's PID namespace; 0 when it
        /// has none there.
        pub tgid: u32,
        /// The file descriptor's number.
        pub fd: u32,
        /// See [`TCP_READ`], [`KNOWN`] and [`ANNOTATES`](crate::record::ANNOTATES).
        pub flags: u32,
        /// `TCP_*` (`sock_common.skc_state`).
        pub state: u32,
        /// `AF_*`.
        pub family: u16,
        /// `IPPROTO_*`.
        pub protocol: u16,
        /// `AF_INET*`: `inet_sock.inet_sport`, the local port in host order; otherwise 0.
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
        /// In CLOSE_WAIT, when TCP last sent a byte, or the time of the walk while bytes wait to be
        /// sent; otherwise 0.
        pub sent_ns: u64,
        /// The kernel's socket cookie.
        pub cookie: u64,
    } is 80 bytes
}
