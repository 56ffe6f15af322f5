//! How an audit ends: the last walks, until counters, ledger and witness agree, and the self-test.

use std::time::Duration;

use tracer_abi::counter::Counter;
use tracer_core::report::{AuditLog, StackGap, Target, Window};

use super::{Audit, StartError, Subject, start};
use crate::probes::ProbeError;
use crate::selftest::{self, WitnessCheck};
use crate::thaw::Thawer;
use crate::{cgroup, clock};

/// How long counters, ledger and witness may take to agree at the end.
const SETTLE: Duration = Duration::from_secs(3);
const SETTLE_STEP: Duration = Duration::from_millis(50);

impl Audit {
    /// Makes the last walks, with living processes of a command frozen, until counters, ledger and
    /// witness agree or the time is up.
    fn final_walk(&mut self) {
        let settle_ns = u64::try_from(SETTLE.as_nanos()).unwrap_or(u64::MAX);
        let deadline_ns = clock::now_ns().saturating_add(settle_ns);
        loop {
            if let Err(error) = self.walk_frozen() {
                self.record_failure(&error);
                return;
            }
            let walk = self.audit_log.walk.as_ref();
            let has_piled_up = walk.is_some_and(|walk| walk.has_piled_up);
            if self.audit_log.agrees() && !has_piled_up || clock::now_ns() > deadline_ns {
                return;
            }
            std::thread::sleep(SETTLE_STEP);
        }
    }

    fn walk_frozen(&mut self) -> Result<(), ProbeError> {
        // Frozen for this walk only: the processes may still release what is in flight. What the
        // audit did not start is never frozen.
        let stopped = self.subject == Subject::Command && self.is_alive();
        let thawer = stopped.then(|| Thawer::start(&self.audited));
        match &thawer {
            Some(Ok(_)) if !cgroup::freeze(&self.audited) => {
                log::debug!("the cgroup cannot be frozen; walking while it runs");
            }
            Some(Err(error)) => log::warn!("the cgroup is not frozen for the last walk: {error}"),
            Some(Ok(_)) | None => {}
        }
        let walked = self
            .walk()
            .and_then(|walk| Ok((walk, self.counts().counters()?)));
        self.audit_log.window.end_ns = clock::now_ns();
        drop(thawer);
        let (walk, counters) = walked?;
        if self.subject == Subject::Command {
            self.audit_log.counters_before = None;
        }
        self.audit_log.walk = Some(walk);
        self.audit_log.counters = counters;
        Ok(())
    }

    /// Runs the self-test in a cgroup of its own below the audited one.
    fn selftest(&mut self, witness_check: WitnessCheck) -> Result<(), StartError> {
        let cgroup = start::selftest_cgroup(&self.audited)?;
        Ok(selftest::run(&mut self.probes, &cgroup, witness_check)?)
    }

    /// Names the stacks of the findings, or says why there are none.
    fn name_stacks(&mut self) {
        let Some(stacks) = &self.stacks else { return };
        let findings = self.ledger.findings().sorted();
        let is_lossy = self.audit_log.counters.of(Counter::StackFailures) > 0;
        let gaps = findings.iter().filter_map(|finding| {
            let gap = stacks.gap(finding.id, finding.accepted, is_lossy)?;
            let before = finding.is_adopted.then_some(StackGap::OpenedBefore);
            Some((finding.id, before.unwrap_or(gap)))
        });
        self.audit_log.stack_gaps = gaps.collect();
        self.audit_log.stacks = stacks.symbolize(findings.iter().map(|finding| finding.id));
    }

    /// Ends the audit: makes the last walk, runs the self-test again and returns the log. The
    /// processes may go on afterwards.
    ///
    /// `is_cut_short` when sockets did not get their whole grace.
    pub fn finish(&mut self, target: Target, is_cut_short: bool) -> AuditLog {
        self.audit_log.target = target;
        self.audit_log.is_cut_short = is_cut_short;
        self.audit_log.kernel = kernel_release();
        self.final_walk();
        self.name_stacks();
        let is_there = self.is_there();
        match self.probes.attachments() {
            Ok((mut attachments, skipped)) => {
                // The others went with the cgroup.
                attachments.retain(|link| link.attached || is_there);
                self.audit_log.attachments = attachments;
                self.audit_log.skipped_runs = skipped;
            }
            Err(error) => self.record_failure(&error),
        }
        // The last walk went over every descriptor of the machine: no need to do that twice.
        let has_met = self
            .audit_log
            .walk
            .as_ref()
            .is_some_and(|walk| walk.open > 0);
        let witness_check = if has_met {
            WitnessCheck::Skipped
        } else {
            WitnessCheck::Required
        };
        if !is_there {
            self.record_failure(&"the cgroup was removed during the audit");
        } else if let Err(error) = self.selftest(witness_check) {
            self.record_failure(&format!("the self-test failed at the end: {error}"));
        }
        self.audit_log.window = Window {
            start_ns: self.start_ns,
            grace_ns: self.timeouts.grace_ns,
            ..self.audit_log.window
        };
        std::mem::take(&mut self.audit_log)
    }
}

/// Returns `uname -r`.
#[must_use]
pub fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}
