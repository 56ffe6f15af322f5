//! The ledger: what is known of every socket of the audit, from the kernel's events and from the witness's walks.
//!
//! A pure core: no clock, no I/O, no task. An event is put in with [`Ledger::apply`]; a walk of the witness with
//! [`Ledger::begin_walk`], [`Ledger::descriptor`] and [`Ledger::finish_walk`]. All that a verdict needs is stamped by the
//! kernel on the record itself, so a lost record costs a timestamp: the next walk sets the ledger right.

mod bytes;
mod findings;
pub mod lifetime;
mod owner;
mod peers;
mod walk;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use hdrhistogram::Histogram;
use tracer_abi::annotation::{Owner, Role};
use tracer_abi::facts::{AF_INET, AF_INET6, IPPROTO_TCP, fact};
use tracer_abi::limits::ANNOTATORS_MAX;
use tracer_abi::record::{
    BoundEvent, Brief, BriefEvent, EndedEvent, LeftEvent, OverstayEvent, ReleaseEvent,
};

use crate::event::{Event, comm_text, label_text};
use crate::verdict::{Kind, Levels};
use bytes::Payload;
pub use findings::Findings;
use findings::new_finding;
use lifetime::{Evidence, Timeouts};
use owner::Owners;
pub use peers::{OTHER, Peer, Peers, Remote};
pub use walk::{ForeignSocket, Walk};

/// How many deadlines are kept. Past that a walk is made when the first one dropped would have come, and that walk finds
/// what runs yet.
const DEADLINES_MAX: usize = 1 << 18;
/// How many processes are named that left the audited cgroup; any more are counted by the kernel only.
const LEFT_MAX: usize = 64;
/// The longest outlive that is told apart, in nanoseconds: a day.
const OUTLIVE_MAX_NS: u64 = 86_400_000_000_000;

#[derive(Debug)]
struct Lifetime {
    born_ns: u64,
    /// Owner, role and time of the present BIND.
    bound: Option<(Owner, u16, u64)>,
    held: bool,
    /// TCP fell to CLOSE.
    dead: bool,
    /// A family without create and release hooks: the witness alone tells whether it is open.
    unhooked: bool,
    /// The witness met it before any record of it came.
    unannounced: bool,
    /// The last walk that met it.
    walk: u32,
    /// The deadline that the last walk found for it and that is kept.
    deadline_ns: u64,
    /// What its byte counters were, and since when.
    moved: Option<(Payload, u64)>,
}

impl Lifetime {
    fn new(brief: &Brief) -> Self {
        Self {
            born_ns: brief.born_ns,
            bound: None,
            held: brief.flags & fact::HELD != 0,
            dead: false,
            unhooked: brief.family != AF_INET && brief.family != AF_INET6,
            unannounced: false,
            walk: 0,
            deadline_ns: 0,
            moved: None,
        }
    }
}

/// When a socket may be overdue, so that the witness should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deadline {
    /// Sockets of an owner that ended.
    Owner(Owner),
    /// A socket that TCP is done with.
    Socket(u64),
    /// A socket that was bound to nobody at first.
    Unbound(u64),
    /// Whatever a process bound to nobody before it first annotated.
    Annotator,
    /// A connect that failed before a SYN was sent: no record says of which socket.
    Dead,
}

/// Plain counts of what the events told.
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
    /// Times that a socket had broken a rule as it was released or began anew.
    pub late: u64,
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    timeouts: Timeouts,
    lifetimes: HashMap<u64, Lifetime>,
    /// Sockets whose release was told before their last BIND: violations come by another ring. One is forgotten as its BIND comes,
    /// or by the walk that follows if that is lost.
    gone_early: HashSet<u64>,
    owners: Owners,
    /// The processes of the audit that annotate, as many as the kernel side remembers.
    annotators: HashSet<u32>,
    due: BinaryHeap<Reverse<(u64, Deadline)>>,
    /// The first deadline that did not fit into `due`.
    dropped_due_ns: Option<u64>,
    findings: Findings,
    outlive: Histogram<u64>,
    peers: Peers,
    counts: Counts,
    /// Number and name of each process that left the audited cgroup.
    left: Vec<(u32, String)>,
    walk: u32,
    walk_began_ns: u64,
    walked: Walk,
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
            gone_early: HashSet::new(),
            owners: Owners::default(),
            annotators: HashSet::new(),
            due: BinaryHeap::new(),
            dropped_due_ns: None,
            findings: Findings::new(levels),
            outlive,
            peers: Peers::default(),
            counts: Counts::default(),
            left: Vec::new(),
            walk: 0,
            walk_began_ns: 0,
            walked: Walk::default(),
        }
    }

    /// Takes one record of the ring.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Created(of) | Event::Arrived(of) => self.recv_born(of),
            Event::Bound(of) => self.recv_bound(of),
            Event::Ended(event) => self.recv_ended(event),
            Event::PeerDone(of) => self.due(of.head.at_ns, Deadline::Socket(of.brief.id)),
            Event::Died(of) => self.recv_died(of),
            Event::Released(of) => self.recv_released(of),
            Event::Overstayed(of) => self.recv_overstayed(of),
            Event::Renewed(of) => self.recv_renewed(of),
            Event::Left(event) => self.recv_left(event),
        }
    }

    fn recv_born(&mut self, of: &BriefEvent) {
        let brief = &of.brief;
        let known = self
            .lifetimes
            .entry(brief.id)
            .or_insert_with(|| Lifetime::new(brief));
        known.unannounced = false;
        if brief.protocol == IPPROTO_TCP && known.bound.is_none() && !self.annotators.is_empty() {
            self.due(of.head.at_ns, Deadline::Unbound(brief.id));
        }
    }

    fn recv_died(&mut self, of: &BriefEvent) {
        if let Some(known) = self.lifetimes.get_mut(&of.brief.id) {
            known.dead = true;
        }
        self.due(of.head.at_ns, Deadline::Socket(of.brief.id));
    }

    fn recv_bound(&mut self, of: &BoundEvent) {
        let at_ns = of.head.at_ns;
        if self.annotators.len() < ANNOTATORS_MAX as usize && self.annotators.insert(of.tgid) {
            self.due(at_ns, Deadline::Annotator);
        }
        self.count_bind(of.brief.id, of.role);
        let known = self.set_bound(&of.brief, (of.owner, of.role, at_ns));
        known.unannounced = false;
        if of.state != 0 {
            // What TCP did to it while it was pooled counts from now.
            self.due(at_ns, Deadline::Socket(of.brief.id));
        }
        if self.owners.has_ended(of.owner) {
            self.due(at_ns, Deadline::Owner(of.owner));
        }
        if self.gone_early.remove(&of.brief.id) {
            self.drop_lifetime(of.brief.id);
        }
    }

    /// A socket broke a rule until it began anew: it has another owner now, is pooled, connects or listens again.
    fn recv_renewed(&mut self, of: &OverstayEvent) {
        let evidence = Evidence {
            facts: &of.socket.facts,
            ends: &of.ends,
            flags: of.head.flags,
            moved_ns: None,
            at_ns: of.head.at_ns,
        };
        if let Some(violation) = evidence.violation(&self.timeouts) {
            self.counts.late += 1;
            let label = label_text(&of.socket);
            self.findings
                .record(new_finding(&evidence, violation, label));
        }
    }

    fn count_bind(&mut self, id: u64, role: u16) {
        let before = self
            .lifetimes
            .get(&id)
            .and_then(|known| known.bound)
            .map(|(_, role, _)| role);
        if before == Some(role) {
            return;
        }
        match Role::from_u16(role) {
            Some(Role::Listener) => self.counts.listeners += 1,
            Some(Role::Link) => self.counts.links += 1,
            Some(Role::Control | Role::Stream | Role::Pool) | None => {}
        }
    }

    /// Brings a lifetime's owner up to what the kernel keeps.
    fn set_bound(&mut self, brief: &Brief, present: (Owner, u16, u64)) -> &mut Lifetime {
        let known = self
            .lifetimes
            .entry(brief.id)
            .or_insert_with(|| Lifetime::new(brief));
        known.held = true;
        if known.bound == Some(present) {
            return known;
        }
        if let Some((former, _, _)) = known.bound.replace(present) {
            self.owners.unbind(former);
        }
        let (owner, role, _) = present;
        let as_stream = Role::from_u16(role) == Some(Role::Stream);
        if self.owners.bind(owner, as_stream) {
            self.counts.streams_bound += 1;
        }
        known
    }

    fn recv_ended(&mut self, event: &EndedEvent) {
        let owner = event.owner;
        self.owners.end(owner);
        if owner.stream != 0 {
            self.counts.streams_ended += 1;
        }
        self.due(event.head.at_ns, Deadline::Owner(owner));
    }

    fn recv_released(&mut self, of: &ReleaseEvent) {
        let (brief, at_ns) = (&of.brief, of.head.at_ns);
        self.drop_lifetime(brief.id);
        self.peers.released(Remote::of_release(of));
        if of.over_ns != 0 {
            self.note_outlive(of.over_ns, at_ns);
        }
        self.findings.released(brief.id, at_ns);
    }

    fn note_outlive(&mut self, over_ns: u64, at_ns: u64) {
        let outlive_ns = at_ns.saturating_sub(over_ns);
        self.outlive.saturating_record(outlive_ns.max(1));
    }

    fn recv_overstayed(&mut self, of: &OverstayEvent) {
        let (at_ns, facts) = (of.head.at_ns, &of.socket.facts);
        let known = self.drop_lifetime(facts.id);
        let told_ns = known
            .and_then(|known| known.bound)
            .map_or(0, |(_, _, at_ns)| at_ns);
        if facts.bound_ns != told_ns {
            self.gone_early.insert(facts.id);
        }
        self.peers.released(Remote::of(facts));
        let evidence = Evidence {
            facts,
            ends: &of.ends,
            flags: of.head.flags,
            moved_ns: None,
            at_ns,
        };
        if let Some(over_ns) = evidence.request_over_ns() {
            self.note_outlive(over_ns, at_ns);
        }
        if let Some(violation) = evidence.violation(&self.timeouts) {
            if violation.kind != Kind::OpenAtExit {
                self.counts.late += 1;
            }
            let mut finding = new_finding(&evidence, violation, label_text(&of.socket));
            finding.released_ns = Some(at_ns);
            finding.releaser = Some((of.tgid, comm_text(&of.comm)));
            self.findings.record(finding);
        } else {
            self.findings.released(facts.id, at_ns);
        }
    }

    fn recv_left(&mut self, event: &LeftEvent) {
        if self.left.len() < LEFT_MAX {
            self.left.push((event.tgid, comm_text(&event.comm)));
        }
    }

    fn drop_lifetime(&mut self, id: u64) -> Option<Lifetime> {
        let known = self.lifetimes.remove(&id)?;
        if let Some((owner, _, _)) = known.bound {
            self.owners.unbind(owner);
        }
        Some(known)
    }

    /// Has the witness look when a rule that runs since `since_ns` is broken.
    fn due(&mut self, since_ns: u64, due: Deadline) {
        self.due_at(since_ns.saturating_add(self.timeouts.grace_ns), due);
    }

    /// Has the witness look after `at_ns`; `false` when there is no room to remember why.
    fn due_at(&mut self, at_ns: u64, due: Deadline) -> bool {
        let fits = self.due.len() < DEADLINES_MAX;
        if fits {
            self.due.push(Reverse((at_ns, due)));
        } else {
            let first_ns = self.dropped_due_ns.unwrap_or(at_ns);
            self.dropped_due_ns = Some(first_ns.min(at_ns));
        }
        fits
    }

    /// Whether a socket may have passed its grace by `now_ns`, so that the witness should look. Forgets the deadlines
    /// that have passed.
    pub fn take_overdue(&mut self, now_ns: u64) -> bool {
        let mut overdue = false;
        let mut waiting = Vec::new();
        while let Some(Reverse((at_ns, due))) = self.due.peek().copied() {
            if at_ns >= now_ns {
                break;
            }
            self.due.pop();
            overdue |= match due {
                Deadline::Owner(owner) => self.owners.has_open(owner),
                Deadline::Annotator => {
                    self.holds_unbound_since(at_ns.saturating_sub(self.timeouts.grace_ns))
                }
                Deadline::Dead => !self.lifetimes.is_empty(),
                Deadline::Socket(id) | Deadline::Unbound(id) => {
                    let known = self.lifetimes.get(&id);
                    let runs = known.is_some_and(|known| {
                        matches!(due, Deadline::Socket(_)) || known.bound.is_none()
                    });
                    // One that waits in a backlog may be accepted unseen at any time: look again.
                    if runs && known.is_some_and(|known| !known.held) {
                        waiting.push(due);
                    }
                    runs
                }
            };
        }
        for due in waiting {
            self.due(now_ns, due);
        }
        if self.dropped_due_ns.is_some_and(|at_ns| at_ns < now_ns) {
            self.dropped_due_ns = None;
            overdue = true;
        }
        overdue
    }

    /// Whether a socket that was opened by then is bound to nobody.
    fn holds_unbound_since(&self, then_ns: u64) -> bool {
        self.lifetimes
            .values()
            .any(|known| known.bound.is_none() && known.born_ns <= then_ns)
    }

    /// Returns the owners whose END the kernel may forget.
    pub fn forget_owners(&mut self) -> Vec<Owner> {
        self.owners.forget()
    }

    /// Returns the number of sockets that the ledger has open with a descriptor.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lifetimes.values().filter(|known| known.held).count()
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

    /// Returns number and name of the processes that left the audited cgroup, as far as they are kept.
    #[must_use]
    pub fn left(&self) -> &[(u32, String)] {
        &self.left
    }

    /// Has the witness look when what is dead now has been so longer than grace.
    pub fn expect_dead(&mut self, now_ns: u64) {
        self.due(now_ns, Deadline::Dead);
    }

    /// Asks `name` for the names of holders that have none yet.
    pub fn name_holders(&mut self, name: impl FnMut(u32) -> Option<Arc<str>>) {
        self.findings.name_holders(name);
    }

    /// Returns how long sockets were open after their request was over, in nanoseconds.
    #[must_use]
    pub fn outlive(&self) -> &Histogram<u64> {
        &self.outlive
    }

    /// Returns the remote addresses.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.peers
    }
}

#[cfg(test)]
mod tests;
