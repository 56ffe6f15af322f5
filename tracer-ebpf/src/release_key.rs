//! By what released connections are counted where no record tells of each.

use crate::layout::shared;

shared! {
    /// A target that was dialed, or the port of the listener that accepted.
    pub struct ReleaseKey {
        /// [`Facts::remote`](crate::facts::Facts::remote) of one that was dialed, otherwise 0.
        pub remote: [u8; 16],
        /// [`Facts::remote_port`](crate::facts::Facts::remote_port) of one that was dialed, otherwise
        /// 0.
        pub remote_port: u16,
        /// [`Facts::local_port`](crate::facts::Facts::local_port) of one that was accepted, otherwise
        /// 0.
        pub local_port: u16,
        /// `AF_*`.
        pub family: u16,
        /// Zero.
        pub reserved: u16,
    } is 24 bytes
}
