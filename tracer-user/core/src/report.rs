//! The outcome of an audit, before it is written as text or JSON.

mod audit_log;
mod groups;
mod missing;
mod notes;
mod stack;

pub use audit_log::{Attachment, AuditLog, Target, Window};
pub use groups::{Group, advice, group_by_cause, split_listed};
pub use stack::{Call, StackGap, own_call};

use crate::ledger::Ledger;
use crate::verdict::{Finding, Level, Verdict};

/// How many remote addresses a report lists.
pub const PEERS_LISTED: usize = 50;

/// The outcome.
#[derive(Debug)]
pub struct Report<'a> {
    /// The answer.
    pub verdict: Verdict,
    /// Why it is not clean.
    pub reasons: Vec<String>,
    /// What is worth a remark and changes no verdict.
    pub notes: Vec<String>,
    /// What the shell saw.
    pub audit_log: &'a AuditLog,
    /// What the ledger holds.
    pub ledger: &'a Ledger,
    /// The findings, worst first.
    pub findings: Vec<&'a Finding>,
    /// The same by cause, the largest groups first.
    pub groups: Vec<Group<'a>>,
}

impl<'a> Report<'a> {
    /// Decides the verdict from the findings and from what is missing.
    #[must_use]
    pub fn new(audit_log: &'a AuditLog, ledger: &'a Ledger) -> Self {
        let denied = ledger.findings().count(Level::Deny);
        let missing = missing::missing(audit_log, ledger);
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
        let findings = ledger.findings().sorted();
        let groups = group_by_cause(&findings, &audit_log.stacks, ledger.findings().levels());
        Self {
            verdict,
            reasons,
            notes: notes::notes(audit_log, ledger),
            audit_log,
            ledger,
            findings,
            groups,
        }
    }

    /// Returns the findings of one level, in order.
    pub fn findings_at(&self, level: Level) -> impl Iterator<Item = &'a Finding> {
        self.findings
            .iter()
            .copied()
            .filter(move |finding| self.ledger.findings().levels().of(finding.kind) == level)
    }

    /// Whether counters, ledger and witness agree.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.audit_log.agrees()
    }
}

#[cfg(test)]
mod tests {
    use tracer_abi::counter::Counter;

    use super::*;
    use crate::ledger::{Timeouts, Walk};
    use crate::verdict::Levels;

    fn ledger() -> Ledger {
        let timeouts = Timeouts::NEVER;
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
    fn a_run_without_sockets_says_that_nothing_was_judged() {
        let ledger = ledger();
        let mut audit_log = whole();
        let report = Report::new(&audit_log, &ledger);
        assert_eq!(report.verdict, Verdict::Clean);
        assert_eq!(
            report.notes,
            ["no internet socket was opened: nothing was judged"]
        );
        audit_log.walk = None;
        assert!(Report::new(&audit_log, &ledger).notes.is_empty());
        for counter in [Counter::Created, Counter::Accepted, Counter::Unhooked] {
            let mut audit_log = whole();
            audit_log.counters.set(counter as u32, 1);
            let report = Report::new(&audit_log, &ledger);
            assert!(report.notes.is_empty(), "{counter:?}");
        }
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        let ledger = ledger();
        for counter in [
            Counter::StorageFailures,
            Counter::EndFailures,
            Counter::AnnotatorFailures,
            Counter::UnseenExecs,
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
