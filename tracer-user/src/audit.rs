//! One audit: the programs, the ledger and the witness. The caller drives it. Dropping it undoes
//! everything.

mod finish;
mod start;
mod subject;

use std::path::{Path, PathBuf};

pub use finish::kernel_release;
pub use subject::Subject;
use thiserror::Error;
use tracer_abi::counter::Counter;
use tracer_core::event;
use tracer_core::ledger::{Change, Ledger, Timeouts, Walk};
use tracer_core::report::AuditLog;
use tracer_core::verdict::Levels;

use crate::cgroup::{self, Cgroup, CgroupError};
use crate::probes::{Counts, Limits, LoadSettings, ProbeError, Probes, ProgramLog};
use crate::process_names::ProcessNames;
use crate::selftest::SelfTestError;
use crate::stacks::Stacks;
use crate::{clock, witness};

/// How many records one poll takes off the rings: a few milliseconds' worth, so that the rest of
/// the loop runs too.
const BATCH: usize = 1 << 13;
/// The shortest time between two walks that overdue sockets ask for.
const WALK_INTERVAL_NS: u64 = 100_000_000;
/// Walks take at most one part in this many of the time, if the grace allows it.
const WALK_SHARE: u64 = 10;
/// How often, at most, an attached audit walks although no deadline has passed.
const ATTACHED_INTERVAL_NS: u64 = 1_000_000_000;
/// How many walks are made before a pile counts, where nothing else asks for them.
const PILE_WALKS: u64 = 16;
/// What the cgroups that audits make are called.
const CGROUP_NAME: &str = "watertight";
/// Why an audit cannot start here.
#[derive(Debug, Error)]
pub enum StartError {
    /// No cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No programs.
    #[error(transparent)]
    Probes(#[from] ProbeError),
    /// The programs are attached and do not see every call.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
}

/// The settings of an audit.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a socket may stay open.
    pub timeouts: Timeouts,
    /// What each finding does to the verdict.
    pub levels: Levels,
    /// The sizes of what the kernel side keeps.
    pub limits: Limits,
    /// Whether to record the stacks that open sockets.
    pub stacks: bool,
    /// Whether this goes on without an end: findings are kept only as long as their rules are broken,
    /// and the kernel counts what breaks none, without a record.
    pub is_guard: bool,
    /// Where to pin what a tracer that is killed must not lose.
    pub pin: Option<PathBuf>,
}

/// A running audit.
pub struct Audit {
    // Dropped in this order: first the programs, then the cgroup that they are attached to.
    probes: Probes,
    program_log: Option<ProgramLog>,
    /// The command's own.
    _cgroup: Option<Cgroup>,
    subject: Subject,
    audited: PathBuf,
    audited_id: u64,
    ledger: Ledger,
    /// `None` unless they are wanted.
    stacks: Option<Stacks>,
    timeouts: Timeouts,
    start_ns: u64,
    audit_log: AuditLog,
    lost_before: u64,
    is_guard: bool,
    /// Whether sockets may be known to the programs alone, until the first walk.
    is_resumed: bool,
    /// Why the last walk failed, if it did.
    last_failure: Option<String>,
    undialed: u64,
    failed_connects: u64,
    needs_walk: bool,
    has_unwatched: bool,
    next_walk_ns: u64,
    last_walk_ns: u64,
}

impl Audit {
    /// Makes a cgroup, loads and attaches the programs, and runs the self-test; or goes on with
    /// programs that are pinned.
    ///
    /// # Errors
    ///
    /// When any of it fails.
    pub fn start(settings: &Settings, subject: Subject) -> Result<Self, StartError> {
        let (own, audited) = match subject.cgroup() {
            Some(path) => (None, path.to_owned()),
            None => {
                let own = Cgroup::create(CGROUP_NAME)?;
                let path = own.path().to_owned();
                (Some(own), path)
            }
        };
        let audited_id = cgroup::id(&audited)?;
        let load = LoadSettings {
            scope: subject.scope(),
            cgroup_id: audited_id,
            grace_ns: settings.timeouts.grace_ns,
            limits: settings.limits,
            all_records: !settings.is_guard,
            stacks: settings.stacks,
            pin: settings.pin.clone(),
        };
        let (mut probes, is_resumed) = start::probes(&load, &audited, &subject)?;
        let program_log = probes.program_log()?;
        let mut audit_log = AuditLog::default();
        if subject == Subject::Command {
            audit_log.inherited = start::inherited(&mut probes)?;
        }
        let mut ledger = Ledger::new(settings.timeouts, settings.levels.clone());
        if settings.is_guard {
            ledger.follow_findings();
        }
        let start_ns = clock::now_ns();
        Ok(Self {
            probes,
            program_log,
            _cgroup: own,
            is_resumed,
            audited,
            ledger,
            is_guard: settings.is_guard,
            stacks: settings.stacks.then(Stacks::default),
            timeouts: settings.timeouts,
            start_ns,
            audit_log,
            lost_before: 0,
            last_failure: None,
            undialed: 0,
            failed_connects: 0,
            // What is there already is adopted by a walk.
            needs_walk: subject != Subject::Command,
            has_unwatched: true,
            subject,
            audited_id,
            next_walk_ns: 0,
            last_walk_ns: start_ns,
        })
    }

    /// Returns the directory of the audited cgroup.
    #[must_use]
    pub fn audited(&self) -> &Path {
        &self.audited
    }

    /// Whether what is audited is still there: the processes, or a cgroup, in which others may be
    /// started.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match &self.subject {
            Subject::Cgroup(_) => self.is_there(),
            Subject::Command
            | Subject::Processes {
                are_alone: true, ..
            } => cgroup::is_populated(&self.audited),
            // Not by their numbers, which are used again.
            Subject::Processes { pids, .. } => self.probes.has_target(pids),
        }
    }

    /// Whether the audited cgroup has not been removed since.
    fn is_there(&self) -> bool {
        cgroup::id(&self.audited).is_ok_and(|id| id == self.audited_id)
    }

    /// Returns what has changed of a guard's findings since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.ledger.take_changes()
    }

    /// Returns why the audit does not see everything now; `None` when it does.
    #[must_use]
    pub fn blind_reason(&self) -> Option<String> {
        if let Some(failure) = &self.last_failure {
            return Some(failure.clone());
        }
        match self.probes.attachments() {
            Err(error) => Some(error.to_string()),
            Ok((links, _)) => links.iter().find(|link| !link.attached).map(|link| {
                let program = &link.program;
                format!("the eBPF program {program} is detached")
            }),
        }
    }

    /// Returns the ledger.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns the ring, which becomes readable when it is half full.
    #[must_use]
    pub fn ring(&self) -> std::os::fd::BorrowedFd<'_> {
        self.probes.ring()
    }

    /// Returns what the kernel counts: since the audit began, or its programs were pinned.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        self.probes.counts()
    }

    /// Returns how many records were taken off the rings.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.audit_log.records
    }

    /// Takes events off the rings, and walks when a socket may have passed its grace. Returns
    /// whether more events wait.
    pub fn poll(&mut self) -> bool {
        let more = self.drain() >= BATCH;
        if let Some(stacks) = &mut self.stacks {
            stacks.prune(|id| self.ledger.knows(id));
        }
        if let Some(log) = &mut self.program_log {
            log.flush();
        }
        let forgotten = self.ledger.forget_owners();
        self.probes.forget(&forgotten);
        let now_ns = clock::now_ns();
        self.check_counters(now_ns);
        self.needs_walk |= self.ledger.take_overdue(now_ns);
        // Only walks tell whether bytes move.
        self.needs_walk |= now_ns.saturating_sub(self.last_walk_ns) >= self.sample_interval_ns();
        if self.needs_walk && now_ns >= self.next_walk_ns {
            self.needs_walk = false;
            self.last_walk_ns = now_ns;
            let walked = self.walk();
            self.last_failure = walked.as_ref().err().map(ToString::to_string);
            if let Err(error) = walked {
                self.record_failure(&error);
            }
            let took_ns = clock::now_ns().saturating_sub(now_ns);
            // Slow walks are made less often, but often enough that the holders of a socket are
            // named before it is gone.
            let longest_ns = match self.subject {
                Subject::Command => self.timeouts.grace_ns / 2,
                Subject::Cgroup(_) | Subject::Processes { .. } => u64::MAX,
            };
            let pause_ns = took_ns
                .saturating_mul(WALK_SHARE)
                .min(longest_ns)
                .max(took_ns)
                .max(WALK_INTERVAL_NS);
            self.next_walk_ns = now_ns.saturating_add(pause_ns);
        }
        more
    }

    /// Returns how often a walk is made although no deadline has passed, in nanoseconds.
    fn sample_interval_ns(&self) -> u64 {
        if self.subject != Subject::Command {
            // A walk goes over every descriptor of the machine, and this may go on for months.
            let piles_ns = self.timeouts.piles.after_ns / PILE_WALKS;
            let nothing_tells = self.has_unwatched || self.is_guard;
            let shortest_ns = if nothing_tells { 0 } else { piles_ns };
            (self.timeouts.grace_ns / 2)
                .max(shortest_ns)
                .max(ATTACHED_INTERVAL_NS)
        } else if self.ledger.may_pile_up() {
            self.timeouts.grace_ns / 2
        } else {
            self.timeouts.idle_ns.min(self.timeouts.stuck_ns) / 4
        }
    }

    /// Asks for a walk when records were lost since the last one, or when connects failed that no
    /// record names.
    fn check_counters(&mut self, now_ns: u64) {
        let Ok(counters) = self.counts().counters() else {
            return;
        };
        self.needs_walk |= counters.lost_records() > self.lost_before;
        let undialed = counters.of(Counter::Undialed);
        // A connect that is in progress is no failure: it is gone the next time.
        let failed = undialed.min(self.undialed);
        if failed > self.failed_connects {
            self.ledger.expect_dead(now_ns);
        }
        self.undialed = undialed;
        self.failed_connects = failed;
    }

    fn record_failure(&mut self, what: &dyn std::fmt::Display) {
        let failure = what.to_string();
        if !self.audit_log.failures.contains(&failure) {
            self.audit_log.failures.push(failure);
        }
    }

    fn drain(&mut self) -> usize {
        if let Some(stacks) = &mut self.stacks {
            self.probes.drain_stacks(|record| stacks.add(record));
        }
        let (ledger, undecodable) = (&mut self.ledger, &mut self.audit_log.undecodable);
        let taken = self
            .probes
            .drain(BATCH, |record| match event::decode(record) {
                Ok(event) => ledger.apply(&event),
                Err(_) => *undecodable += 1,
            });
        self.audit_log.records += u64::try_from(taken).unwrap_or(u64::MAX);
        taken
    }

    /// Takes everything off the rings that is in them now, and no more: records may come faster
    /// than they are taken.
    fn drain_all(&mut self) {
        let mut rest = self.probes.capacity();
        while rest > 0 && self.drain() >= BATCH {
            rest = rest.saturating_sub(BATCH);
        }
    }

    /// Walks over all descriptors, and corrects the ledger if records were lost.
    fn walk(&mut self) -> Result<Walk, ProbeError> {
        self.drain_all();
        let counters_before = self.counts().counters()?;
        if self.is_guard {
            let ledger = &mut self.ledger;
            self.probes
                .counts()
                .releases(|key, count| ledger.set_counted(key, count))?;
            ledger.set_counted_elsewhere(counters_before.of(Counter::ReleasedElsewhere));
        }
        self.audit_log.scans += 1;
        self.audit_log.counters_before = Some(counters_before);
        let targets = self.holders();
        self.ledger.begin_walk(clock::now_ns());
        let file = self.probes.walk()?;
        witness::read(file, targets, &mut self.ledger, clock::now_ns)
            .map_err(ProbeError::Witness)?;
        self.drain_all();
        let lost = self.counts().counters()?.lost_records();
        let lossy = std::mem::take(&mut self.is_resumed) || lost > self.lost_before;
        // A record that was lost during the walk may be of a socket that it had met by then:
        // another walk must follow.
        self.lost_before = counters_before.lost_records();
        self.audit_log.resyncs += u64::from(lossy);
        // Most sockets of a guard have no records.
        let walk = self.ledger.finish_walk(lossy || self.is_guard);
        self.has_unwatched = walk.unwatched > 0;
        // Who holds the members of a pile is known after another walk.
        self.needs_walk |= walk.has_piled_up;
        let mut names = ProcessNames::default();
        self.ledger.name_holders(|pid| names.of(pid));
        Ok(walk)
    }

    /// Returns whether sockets from outside the audit count if a process holds them.
    fn holders(&self) -> impl Fn(u32) -> bool + use<> {
        let own = std::process::id();
        let of_command =
            (self.subject == Subject::Command).then(|| cgroup::processes(&self.audited));
        move |process| match &of_command {
            Some(processes) => processes.contains(&process),
            None => process != own,
        }
    }
}
