//! What a tracer that comes back must know of the programs that it finds pinned.

use crate::layout::shared;

shared! {
    /// How the pinned programs were loaded. A tracer that wants something else cannot go on with
    /// them.
    pub struct Settings {
        /// Of the eBPF object.
        pub digest: u64,
        /// The audited cgroup.
        pub cgroup_id: u64,
        /// The grace in nanoseconds.
        pub grace_ns: u64,
        /// See [`scope`](crate::scope).
        pub scope: u32,
        /// The size of the ring for records.
        pub ring_bytes: u32,
        /// How many slots there are.
        pub places: u32,
        /// Whether stacks are recorded.
        pub stacks: u32,
        /// Whether records tell of every socket.
        pub all_records: u32,
        /// Zero.
        pub reserved: u32,
    } is 48 bytes
}
