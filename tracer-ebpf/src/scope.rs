//! Which processes and sockets belong to an audit. Set before the programs are loaded.

/// Those of a cgroup that is made for the audit: all that is ever in it came while the programs
/// were attached.
pub const COMMAND: u32 = 0;
/// Those of a cgroup that was there before: what is in it already is adopted.
pub const CGROUP: u32 = 1;
/// Those that user space names, and what they start: their sockets from before are adopted. Others
/// of the cgroup are not looked at.
pub const PROCESSES: u32 = 2;
/// Every process of the machine. Nothing is attached or kept: walks read what the kernel has.
pub const MACHINE: u32 = 3;
