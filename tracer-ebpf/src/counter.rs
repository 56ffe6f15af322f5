//! The counters of the kernel side.

/// Indices of the per-CPU counters. Counts are since the programs were loaded.
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
    /// Owners that got their first END.
    Ended,
    /// Annotations refused as malformed.
    Refused,
    /// Times that a socket had broken a rule for longer than grace as it was released or began
    /// anew.
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
    ViolationFailures,
    /// Stacks that found their ring full.
    StackFailures,
    /// Processes that entered the audited cgroup, not born there.
    Entered,
    /// Processes of the audit that left its cgroup.
    Left,
    /// Processes of the audit that could not be remembered because the table was full.
    MemberFailures,
    /// Times that a TCP socket was told to connect and did not begin to, for want of a route, an
    /// address or a port. Counted up at the one and down at the other, each on its own CPU: only
    /// the sum, which wraps, means anything.
    Undialed,
    /// Sockets that found their slot taken as they were made.
    WithoutSlot,
    /// Releases that no record tells of, to targets for which there was no place in the table of
    /// them.
    ReleasedElsewhere,
    /// Execs of processes that annotate which were noticed only afterwards: the kernel had skipped
    /// the program that sees them.
    UnseenExecs,
}

impl Counter {
    /// How many counters there are.
    pub const COUNT: u32 = Self::UnseenExecs as u32 + 1;
}
