//! How much there may be of what.

/// How many annotating processes the kernel remembers.
pub const ANNOTATORS_MAX: u32 = 1 << 16;
/// How many processes of the audit may live at once.
pub const MEMBERS_MAX: u32 = 1 << 16;
/// How many levels up from a process's own cgroup the audited one is looked for.
pub const CGROUP_LEVELS: u32 = 64;
/// How many sockets find a slot for what is known of them, unless user space sets another power of
/// two: 15 MB. The others cost more.
pub const SLOTS: u32 = 1 << 16;
/// How many ENDs the kernel remembers at once: their memory is allocated at start, about 23 MB.
/// User space forgets the oldest before it is full.
pub const ENDS_MAX: u32 = 1 << 18;
/// How many targets and listeners have a count of their own of the releases that no record tells of.
pub const RELEASES_MAX: u32 = 1 << 12;
/// The size in bytes of the ring for everything that happens, unless user space sets another.
pub const RING_BYTES: u32 = 4 << 20;
/// The size in bytes of the ring for violations, which a flood of the other must not drown: about
/// 4,000 of them.
pub const VIOLATIONS_BYTES: u32 = 1 << 20;
/// The size in bytes of the ring for stacks where they are wanted: about 500 of them.
pub const STACKS_BYTES: u32 = 8 << 20;
