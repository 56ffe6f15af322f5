//! What is audited.

use std::path::{Path, PathBuf};

use crate::probes::Scope;

/// What is audited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A command that will be started in a cgroup of its own.
    Command,
    /// A cgroup that is there already, and those below it.
    Cgroup(PathBuf),
    /// Processes that run already in this cgroup or below it, and what they start.
    Processes {
        /// Their cgroup.
        cgroup: PathBuf,
        /// Their PIDs.
        pids: Vec<u32>,
        /// Whether nothing else runs in the cgroup: then it is what is audited.
        are_alone: bool,
    },
}

impl Subject {
    pub(super) const fn scope(&self) -> Scope {
        match self {
            Self::Command => Scope::Command,
            Self::Cgroup(_)
            | Self::Processes {
                are_alone: true, ..
            } => Scope::Cgroup,
            Self::Processes { .. } => Scope::Processes,
        }
    }

    /// Returns the cgroup that was there before.
    pub(super) fn cgroup(&self) -> Option<&Path> {
        match self {
            Self::Command => None,
            Self::Cgroup(cgroup) | Self::Processes { cgroup, .. } => Some(cgroup),
        }
    }
}
