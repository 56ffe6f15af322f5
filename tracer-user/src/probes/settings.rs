//! What the programs must know before they are loaded.

use std::path::PathBuf;

use tracer_abi::limits::{RING_BYTES, SLOTS};
use tracer_abi::{pinned as pinned_abi, scope};

use super::pinned;

/// Which processes and sockets belong to the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of a cgroup that is made for the audit.
    Command,
    /// Those of a cgroup that is there already.
    Cgroup,
    /// Those of processes that are named, and of what they start.
    Processes,
    /// All of the machine: nothing is attached or kept.
    Machine,
}

impl Scope {
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Command => scope::COMMAND,
            Self::Cgroup => scope::CGROUP,
            Self::Processes => scope::PROCESSES,
            Self::Machine => scope::MACHINE,
        }
    }
}

/// What the programs must know before they are loaded.
#[derive(Clone, Debug)]
pub struct LoadSettings {
    /// Which processes and sockets belong to the audit.
    pub scope: Scope,
    /// The id of the audited cgroup.
    pub cgroup_id: u64,
    /// The grace in nanoseconds.
    pub grace_ns: u64,
    /// The sizes of what the kernel side keeps.
    pub limits: Limits,
    /// Whether records tell of every socket. Otherwise they tell of those that are annotated or were
    /// there before, and of violations; the witness meets the others.
    pub all_records: bool,
    /// Whether each socket's opener is asked for its stack.
    pub stacks: bool,
    /// The directory to pin to.
    pub pin: Option<PathBuf>,
}

impl LoadSettings {
    /// Returns what must be the same for pinned programs.
    pub(super) fn pinned(&self) -> pinned_abi::Settings {
        pinned_abi::Settings {
            digest: pinned::digest(super::OBJECT),
            cgroup_id: self.cgroup_id,
            grace_ns: self.grace_ns,
            scope: self.scope.number(),
            ring_bytes: self.limits.ring_bytes,
            places: self.limits.places,
            stacks: u32::from(self.stacks),
            all_records: u32::from(self.all_records),
            reserved: 0,
        }
    }
}

/// The sizes of what the kernel side keeps.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the ring buffer for records: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Sockets that find a place ready, a power of two.
    pub places: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ring_bytes: RING_BYTES,
            places: SLOTS,
        }
    }
}
