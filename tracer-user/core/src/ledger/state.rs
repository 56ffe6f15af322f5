//! The ledger's state, and what is asked of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hdrhistogram::Histogram;
use tracer_abi::annotation::{Owner, Role};
use tracer_abi::record::Brief;
use tracer_abi::release_key::ReleaseKey;

use super::connections::{Connections, Tallies};
use super::deadlines::{Deadline, Deadlines};
use super::findings::{Change, Findings};
use super::lifetime::Lifetime;
use super::owners::Owners;
use super::piles::{PileNote, PileSize, Piles};
use super::rules::Timeouts;
use super::walk::Walk;
use crate::verdict::{Levels, ProcessName};

/// The longest outlive that is measured, in nanoseconds: a day.
const OUTLIVE_MAX_NS: u64 = 86_400_000_000_000;

/// Plain counts of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sockets bound as listeners.
    pub listeners: u64,
    /// Sockets bound as links.
    pub links: u64,
    /// Streams that a socket was bound to.
    pub streams_bound: u64,
    /// Streams that ended.
    pub streams_ended: u64,
    /// How often a socket had broken a rule when it was released or reused.
    pub late: u64,
    /// Sockets that were made in another cgroup: only walks met them.
    pub witnessed_only: u64,
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    pub(super) timeouts: Timeouts,
    pub(super) lifetimes: HashMap<u64, Lifetime>,
    /// Sockets whose release came before their last BIND, since violations come by another ring.
    /// An entry is removed by the BIND, or by the next walk if the BIND was lost.
    pub(super) released_before_bind: HashSet<u64>,
    pub(super) owners: Owners,
    /// The processes that annotate; the kernel side remembers as many.
    pub(super) annotators: HashSet<u32>,
    pub(super) deadlines: Deadlines,
    pub(super) findings: Findings,
    pub(super) outlive: Histogram<u64>,
    pub(super) connections: Connections,
    pub(super) piles: Piles,
    pub(super) counts: Counts,
    /// PID and name of the processes that left the audited cgroup.
    pub(super) left: Vec<(u32, String)>,
    pub(super) walk: u32,
    pub(super) walk_began_ns: u64,
    pub(super) walked: Walk,
    /// The local ports of the listeners that walks met: what tells whether an adopted connection
    /// was accepted.
    pub(super) listening: HashSet<u16>,
    /// The cookies of the sockets of this walk that no rule judges: one may have several
    /// descriptors.
    pub(super) unjudged: HashSet<u64>,
}

impl Ledger {
    /// Makes an empty ledger.
    ///
    /// # Panics
    ///
    /// Never: the histogram's bounds are constants that it accepts.
    #[must_use]
    pub fn new(timeouts: Timeouts, levels: Levels) -> Self {
        #[expect(
            clippy::expect_used,
            reason = "the bounds are constants that a test covers"
        )]
        let outlive = Histogram::new_with_bounds(1, OUTLIVE_MAX_NS, 3)
            .expect("a range above zero and three digits are valid");
        Self {
            timeouts,
            lifetimes: HashMap::new(),
            released_before_bind: HashSet::new(),
            owners: Owners::default(),
            annotators: HashSet::new(),
            deadlines: Deadlines::default(),
            findings: Findings::new(levels),
            outlive,
            connections: Connections::default(),
            piles: Piles::default(),
            counts: Counts::default(),
            left: Vec::new(),
            walk: 0,
            walk_began_ns: 0,
            walked: Walk::default(),
            listening: HashSet::new(),
            unjudged: HashSet::new(),
        }
    }

    /// Updates a lifetime's owner to what the kernel keeps: owner, role and time of the BIND.
    pub(super) fn set_bound(&mut self, brief: &Brief, current: (Owner, u16, u64)) -> &mut Lifetime {
        let lifetime = self
            .lifetimes
            .entry(brief.id)
            .or_insert_with(|| Lifetime::new(brief));
        lifetime.held = true;
        if lifetime.bound == Some(current) {
            return lifetime;
        }
        if let Some((previous, _, _)) = lifetime.bound.replace(current) {
            self.owners.unbind(previous);
        }
        let (owner, role, _) = current;
        let as_stream = Role::from_u16(role) == Some(Role::Stream);
        if self.owners.bind(owner, as_stream) {
            self.counts.streams_bound += 1;
        }
        lifetime
    }

    pub(super) fn drop_lifetime(&mut self, id: u64) -> Option<Lifetime> {
        let lifetime = self.lifetimes.remove(&id)?;
        if let Some((owner, _, _)) = lifetime.bound {
            self.owners.unbind(owner);
        }
        Some(lifetime)
    }

    /// Adds a deadline for a rule that has run since `since_ns`.
    pub(super) fn add_deadline(&mut self, since_ns: u64, deadline: Deadline) {
        let at_ns = since_ns.saturating_add(self.timeouts.grace_ns);
        self.deadlines.push(at_ns, deadline);
    }

    /// Whether a socket may have passed its grace by `now_ns`, so that the witness should walk.
    /// Removes the deadlines that have passed.
    pub fn take_overdue(&mut self, now_ns: u64) -> bool {
        let mut overdue = false;
        let mut waiting = Vec::new();
        while let Some((at_ns, deadline)) = self.deadlines.pop_passed(now_ns) {
            overdue |= match deadline {
                Deadline::Owner(owner) => self.owners.has_open(owner),
                Deadline::Annotator => {
                    self.has_unbound_since(at_ns.saturating_sub(self.timeouts.grace_ns))
                }
                Deadline::Dead => !self.lifetimes.is_empty(),
                Deadline::Socket(id) | Deadline::Unbound(id) => {
                    let lifetime = self.lifetimes.get(&id);
                    let is_running = lifetime.is_some_and(|lifetime| {
                        matches!(deadline, Deadline::Socket(_)) || lifetime.bound.is_none()
                    });
                    // A socket in a backlog may be accepted unseen at any time: look again later.
                    if is_running && lifetime.is_some_and(|lifetime| !lifetime.held) {
                        waiting.push(deadline);
                    }
                    is_running
                }
            };
        }
        for deadline in waiting {
            self.add_deadline(now_ns, deadline);
        }
        overdue | self.deadlines.take_dropped(now_ns)
    }

    /// Whether a socket that was opened by `then_ns` has no owner.
    fn has_unbound_since(&self, then_ns: u64) -> bool {
        self.lifetimes
            .values()
            .any(|lifetime| lifetime.bound.is_none() && lifetime.born_ns <= then_ns)
    }

    /// Adds a deadline for sockets that are dead at `now_ns` and that no record names.
    pub fn expect_dead(&mut self, now_ns: u64) {
        self.add_deadline(now_ns, Deadline::Dead);
    }

    /// Returns the owners whose END the kernel may forget.
    pub fn forget_owners(&mut self) -> Vec<Owner> {
        self.owners.forget()
    }

    /// Asks `name` for the names of holders that have none yet.
    pub fn name_holders(&mut self, name: impl FnMut(u32) -> Option<Arc<ProcessName>>) {
        self.findings.name_holders(name);
    }

    /// Whether so many sockets are open that there may be a pile, so that the witness should walk
    /// now and then although no deadline has passed.
    #[must_use]
    pub fn may_pile_up(&self) -> bool {
        self.lifetimes.len() >= self.timeouts.piles.growth
    }

    /// Returns how long sockets may break rules.
    #[must_use]
    pub const fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Returns the piles that are worth a note, largest first.
    #[must_use]
    pub fn pile_notes(&self) -> Vec<PileNote> {
        self.piles.notes(&self.timeouts.piles)
    }

    /// Returns the size of each pile as of the last walk, the largest first.
    #[must_use]
    pub fn pile_sizes(&self) -> Vec<PileSize> {
        self.piles.sizes(self.walk_began_ns)
    }

    /// Returns the number of open sockets that have a descriptor.
    #[must_use]
    pub fn open(&self) -> usize {
        let lifetimes = self.lifetimes.values();
        lifetimes.filter(|lifetime| lifetime.held).count()
    }

    /// From now on, keeps what changes of the findings until [`Ledger::take_changes`], and findings
    /// only as long as their rules are broken: for an audit without an end.
    pub fn follow_findings(&mut self) {
        self.findings.follow();
    }

    /// Returns what has changed of the findings since the last call; see
    /// [`Ledger::follow_findings`].
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.findings.take_changes()
    }

    /// Returns the plain counts.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns the findings.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Whether a socket is open, as far as is known, or has a finding.
    #[must_use]
    pub fn knows(&self, id: u64) -> bool {
        self.lifetimes.contains_key(&id) || self.findings.contains(id)
    }

    /// Returns PID and name of the processes that left the audited cgroup; a bounded list.
    #[must_use]
    pub fn left(&self) -> &[(u32, String)] {
        &self.left
    }

    /// Returns how long sockets were open after their request was over, in nanoseconds.
    #[must_use]
    pub fn outlive(&self) -> &Histogram<u64> {
        &self.outlive
    }

    /// Sets how many connections were released without a record, to a target or of a listener.
    pub fn set_counted(&mut self, key: &ReleaseKey, count: u64) {
        self.connections.set_counted(key, count);
    }

    /// Does the same for all that the kernel side had no place for.
    pub fn set_counted_elsewhere(&mut self, count: u64) {
        self.connections.set_counted_elsewhere(count);
    }

    /// Returns the connections by remote address.
    #[must_use]
    pub fn peers(&self) -> &Tallies {
        self.connections.by_remote()
    }

    /// Returns the accepted connections by listener, which is named by its port: `:8080`.
    #[must_use]
    pub fn listeners(&self) -> &Tallies {
        self.connections.by_listener()
    }
}
