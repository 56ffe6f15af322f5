//! What the shell saw of the audit.

use std::collections::HashMap;
use std::sync::Arc;

use tracer_abi::counter::Counter;

use super::stack::{Call, StackGap};
use crate::counters::Counters;
use crate::ledger::{ForeignSocket, Walk};

/// What was audited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The cgroup's directory.
    pub cgroup: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Its exit status, 128 and more for a signal; `None` when it was still running at the end.
    pub exit_status: Option<i32>,
}

/// The window of the audit, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// When the hooks were attached and the command was about to start.
    pub start_ns: u64,
    /// When the last walk of the witness was over.
    pub end_ns: u64,
    /// The grace.
    pub grace_ns: u64,
}

/// One eBPF program's attachment to the cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The program's name.
    pub program: String,
    /// The link's number: `bpftool link show id N`.
    pub link_id: u32,
    /// Whether the link is still attached to a cgroup: `bpftool link detach` detaches it, but it
    /// stays.
    pub attached: bool,
}

/// Everything that a report needs besides the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditLog {
    /// What was audited.
    pub target: Target,
    /// The window.
    pub window: Window,
    /// `uname -r`.
    pub kernel: String,
    /// Whether the user ended the audit before sockets had their whole grace.
    pub is_cut_short: bool,
    /// The kernel's counters since the audit began.
    pub counters: Counters,
    /// The counters as the last walk began; `None` when nothing ran during it.
    pub counters_before: Option<Counters>,
    /// The last walk of the witness; `None` when it failed.
    pub walk: Option<Walk>,
    /// Walks made.
    pub scans: u64,
    /// How often the ledger was corrected by a walk after records were lost.
    pub resyncs: u64,
    /// Records that were read from the rings.
    pub records: u64,
    /// Records that could not be decoded.
    pub undecodable: u64,
    /// Internet sockets from outside the audit that the command inherited.
    pub inherited: Vec<ForeignSocket>,
    /// Where the programs were attached as the audit ended.
    pub attachments: Vec<Attachment>,
    /// Runs of the programs that the kernel skipped and that are neither made up for nor noticed
    /// otherwise.
    pub skipped_runs: u64,
    /// The stacks that opened the sockets of the findings, by
    /// [`Finding::id`](crate::verdict::Finding::id), the innermost call first.
    pub stacks: HashMap<u64, Arc<[Call]>>,
    /// Why findings have no stack, or only a part of it, although stacks were wanted.
    pub stack_gaps: HashMap<u64, StackGap>,
    /// What else went wrong, as whole sentences.
    pub failures: Vec<String>,
}

impl AuditLog {
    /// Whether the last walk met exactly the sockets that must be open by the kernel's counters and
    /// by the ledger.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| {
            walk.only_in_kernel == 0 && walk.only_in_ledger == 0 && self.counters_agree(walk)
        })
    }

    /// Returns how many runs of the programs are missing: nothing makes up for them.
    #[must_use]
    pub fn missed_runs(&self) -> u64 {
        self.skipped_runs + self.counters.of(Counter::UnseenExecs)
    }

    /// Whether the walk met as many sockets as must be open by the kernel's counters. While the
    /// program runs, the walk may or may not have met those that came or went during it.
    pub(super) fn counters_agree(&self, walk: &Walk) -> bool {
        let met = i128::from(walk.open);
        let Some(before) = &self.counters_before else {
            return self.counters.open() == met;
        };
        let during = self.counters.since(before);
        let came = during.open() + i128::from(during.of(Counter::Released));
        let went = i128::from(during.of(Counter::Released));
        (before.open() - went..=before.open() + came).contains(&met)
    }
}
