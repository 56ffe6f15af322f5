//! The outcome of an audit, before it is written down as text or JSON.

use std::collections::HashMap;
use std::sync::Arc;

use tracer_abi::counter::Counter;

use crate::counters::Counters;
use crate::ledger::{ForeignSocket, Ledger, Walk};
use crate::verdict::{Finding, Level, Verdict};

/// How many remote addresses a report lists.
pub const PEERS_LISTED: usize = 50;

/// How many of the processes that left the audited cgroup are named.
const LEFT_NAMED: usize = 8;

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

/// When, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The hooks were attached and the command about to start.
    pub start_ns: u64,
    /// The last walk of the witness was over.
    pub end_ns: u64,
    /// The grace.
    pub grace_ns: u64,
}

/// One program's attachment to the cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The program's name.
    pub program: String,
    /// The link's number: `bpftool link show id N`.
    pub link_id: u32,
    /// Whether the link still leads to a cgroup: `bpftool link detach` cuts it and leaves it attach_state.
    pub attached: bool,
}

/// One call of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The function, demangled; `None` where no symbol table names it.
    pub function: Option<String>,
    /// The file of the code, as the process named it; `None` for generated code.
    pub module: Option<String>,
    /// Where in the file, in bytes; without a file the address in the process.
    pub offset: u64,
    /// File and line of the source, where debug information tells.
    pub source: Option<String>,
}

/// What the shell saw of its own work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditLog {
    /// What was audited.
    pub target: Target,
    /// When.
    pub window: Window,
    /// `uname -r`.
    pub kernel: String,
    /// The kernel's counters since the audit began.
    pub counters: Counters,
    /// The last walk of the witness; `None` when it failed.
    pub walk: Option<Walk>,
    /// Walks made.
    pub scans: u64,
    /// Times that the ledger was set right from a walk after a loss.
    pub resyncs: u64,
    /// Records that were taken off the rings.
    pub records: u64,
    /// Records that could not be decoded.
    pub undecodable: u64,
    /// Internet sockets from outside the audit that the command was started with.
    pub inherited: Vec<ForeignSocket>,
    /// Where the programs were attached as the audit ended.
    pub attachments: Vec<Attachment>,
    /// Runs of the programs that the kernel skipped.
    pub missed_runs: u64,
    /// The stacks that opened the sockets of the findings, by [`Finding::id`], the innermost call first.
    pub stacks: HashMap<u64, Arc<[Call]>>,
    /// What else went wrong, in whole sentences.
    pub failures: Vec<String>,
}

/// The outcome.
#[derive(Debug)]
pub struct Report<'a> {
    /// The answer.
    pub verdict: Verdict,
    /// Why it is not clean.
    pub reasons: Vec<String>,
    /// What the shell saw.
    pub audit_log: &'a AuditLog,
    /// What the ledger holds.
    pub ledger: &'a Ledger,
    /// The findings, worst first.
    pub findings: Vec<&'a Finding>,
}

impl<'a> Report<'a> {
    /// Weighs what was found and what is missing.
    #[must_use]
    pub fn new(audit_log: &'a AuditLog, ledger: &'a Ledger) -> Self {
        let denied = ledger.findings().count(Level::Deny);
        let missing = missing(audit_log, ledger);
        let verdict = Verdict::of(denied, &missing);
        let mut reasons = Vec::new();
        if denied > 0 {
            reasons.push(format!(
                "{denied} {} open longer than allowed",
                if denied == 1 {
                    "socket was"
                } else {
                    "sockets were"
                }
            ));
        }
        reasons.extend(missing);
        Self {
            verdict,
            reasons,
            audit_log,
            ledger,
            findings: ledger.findings().sorted(),
        }
    }

    /// Returns the findings of one level, in order.
    pub fn findings_at(&self, level: Level) -> impl Iterator<Item = &'a Finding> {
        self.findings
            .iter()
            .copied()
            .filter(move |found| self.ledger.findings().levels().of(found.kind) == level)
    }

    /// Whether counters, ledger and witness tell the same story.
    #[must_use]
    pub fn agrees(&self) -> bool {
        agrees(self.audit_log)
    }
}

/// Whether the last walk met exactly the sockets that must be open by the kernel's counters and by the ledger.
#[must_use]
pub fn agrees(audit_log: &AuditLog) -> bool {
    audit_log.walk.as_ref().is_some_and(|walk| {
        walk.only_in_kernel == 0
            && walk.only_in_ledger == 0
            && audit_log.counters.open() == i128::from(walk.open)
    })
}

/// Says what the evidence lacks, one whole sentence each.
fn missing(audit_log: &AuditLog, ledger: &Ledger) -> Vec<String> {
    let counters = &audit_log.counters;
    let mut missing = audit_log.failures.clone();
    missing.extend(
        audit_log
            .attachments
            .iter()
            .filter(|of| !of.attached)
            .map(|of| {
                format!(
                    "the eBPF program {} was detached during the audit (link {})",
                    of.program, of.link_id
                )
            }),
    );
    missing.extend(audit_log.inherited.iter().map(|of| {
        format!(
            "the command inherited fd {}, an internet socket from outside the audit with the local port {}: what happens on it is not seen",
            of.holder.fd, of.local_port
        )
    }));
    let left = counters.of(Counter::Left);
    if left > 0 {
        let names: Vec<String> = ledger
            .left()
            .iter()
            .take(LEFT_NAMED)
            .map(|(pid, comm)| format!("{comm} ({pid})"))
            .collect();
        missing.push(format!(
            "{left} processes left the audited cgroup, so that the sockets they opened from then on are not seen: {}",
            if names.is_empty() { "their names were lost".to_owned() } else { names.join(", ") }
        ));
    }
    let mut lacks = |count: u64, what: &str| {
        if count > 0 {
            missing.push(format!("{count} {what}"));
        }
    };
    lacks(
        counters.of(Counter::StorageFailures),
        "sockets could not be followed: the kernel had no memory for their storage",
    );
    lacks(
        counters.of(Counter::EndFailures),
        "ENDs could not be remembered: the kernel's table was full",
    );
    lacks(
        counters.of(Counter::AnnotatorFailures),
        "annotating processes could not be remembered: the kernel's table was full",
    );
    lacks(
        counters.of(Counter::MemberFailures),
        "processes could not be followed: the kernel's table was full",
    );
    lacks(
        audit_log.missed_runs,
        "runs of the eBPF programs were skipped by the kernel",
    );
    lacks(
        audit_log.undecodable,
        "records of the kernel side could not be decoded: it is of another build",
    );
    lacks(
        counters
            .of(Counter::Late)
            .saturating_sub(ledger.counts().late),
        "sockets were released, or began anew, too late by the kernel's count, but the records that name them were lost",
    );
    let Some(walk) = &audit_log.walk else {
        return missing;
    };
    lacks(
        walk.only_in_ledger,
        "sockets have no file descriptor that the witness can see (passed over a Unix socket and not received, or held by io_uring)",
    );
    lacks(
        walk.only_in_kernel,
        "sockets were met by the witness that no record told of",
    );
    if let Some(one) = walk.foreign_sockets.first()
        && audit_log.inherited.is_empty()
    {
        missing.push(format!(
            "{} file descriptors of the command are internet sockets from outside the audit, so that what happens on them is not seen: the first is fd {} of process {}, local port {}",
            walk.foreign_sockets.len(), one.holder.fd, one.holder.pid, one.local_port
        ));
    }
    let must = counters.open();
    if must != i128::from(walk.open) {
        missing.push(format!(
            "the kernel's counters say that {must} sockets are open, the witness met {}",
            walk.open
        ));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::lifetime::Timeouts;
    use crate::verdict::Levels;

    fn ledger() -> Ledger {
        let timeouts = Timeouts {
            grace_ns: 1,
            idle_ns: 1,
        };
        Ledger::new(timeouts, Levels::default())
    }

    fn whole() -> AuditLog {
        AuditLog {
            walk: Some(Walk::default()),
            ..AuditLog::default()
        }
    }

    #[test]
    fn whole_evidence_without_findings_is_clean() {
        let (audit_log, ledger) = (whole(), ledger());
        let report = Report::new(&audit_log, &ledger);
        assert_eq!(report.verdict, Verdict::Clean);
        assert!(report.reasons.is_empty());
        assert!(report.agrees());
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        let ledger = ledger();
        for counter in [
            Counter::StorageFailures,
            Counter::EndFailures,
            Counter::AnnotatorFailures,
            Counter::Late,
            Counter::Created,
        ] {
            let mut audit_log = whole();
            audit_log.counters.set(counter as u32, 3);
            let report = Report::new(&audit_log, &ledger);
            assert_eq!(report.verdict, Verdict::Inconclusive, "{counter:?}");
            assert_eq!(report.reasons.len(), 1, "{counter:?}");
            assert!(report.reasons[0].contains('3'), "{counter:?}");
        }
        for audit_log in [
            AuditLog {
                undecodable: 1,
                ..whole()
            },
            AuditLog {
                failures: vec!["the witness failed".to_owned()],
                walk: None,
                ..whole()
            },
            AuditLog {
                walk: Some(Walk {
                    only_in_ledger: 1,
                    ..Walk::default()
                }),
                ..whole()
            },
        ] {
            let report = Report::new(&audit_log, &ledger);
            assert_eq!(report.verdict, Verdict::Inconclusive);
            assert_eq!(report.reasons.len(), 1);
        }
    }

    #[test]
    fn lost_records_alone_change_nothing_when_the_rest_agrees() {
        let mut audit_log = whole();
        audit_log.counters.set(Counter::RingFailures as u32, 100);
        assert_eq!(Report::new(&audit_log, &ledger()).verdict, Verdict::Clean);
    }
}
