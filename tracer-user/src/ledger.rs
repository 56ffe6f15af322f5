//! The ledger: what is known of every socket of the audit, from the kernel's news and from the witness's walks.
//!
//! A pure core: no clock, no I/O, no task. News is put in with [`Ledger::apply`]; a walk of the witness with
//! [`Ledger::begin_walk`], [`Ledger::sight`] and [`Ledger::finish_walk`]. All that a verdict needs is stamped by the
//! kernel on the record itself, so a lost record costs a timestamp: the next walk sets the ledger right.

pub mod lifetime;
mod owner;
mod peers;

use std::collections::{HashMap, VecDeque};

use hdrhistogram::Histogram;
use tracer_abi::annotation::{Owner, Role};
use tracer_abi::record::{
    AF_INET, AF_INET6, ANNOTATES, BoundEvent, Brief, BriefEvent, Ends, Event, Facts, IPPROTO_TCP,
    Sighting, Socket, SocketEvent, fact,
};

use crate::news::{News, Sight, comm_text, label_text};
use crate::verdict::{Finding, Holder, Kind, Level, Levels, OwnerNote};
use lifetime::{Evidence, Limits, Offence, Payload, is_tcp, payload, payload_seen, tuple};
use owner::Owners;
pub use peers::{OTHER, Peer, Peers};

/// How many findings keep their evidence; any more are counted only.
pub const FINDINGS_MAX: usize = 1 << 17;
/// How many holders a finding names.
pub const HOLDERS_MAX: usize = 64;
/// How many deadlines are kept. Past that a walk is made when the last one dropped would have come.
const DEADLINES_MAX: usize = 1 << 18;
/// The longest outlive that is told apart, in nanoseconds: a day.
const OUTLIVE_MAX_NS: u64 = 86_400_000_000_000;

#[derive(Debug)]
struct Lifetime {
    born_ns: u64,
    /// Owner, role and time of the present BIND.
    bound: Option<(Owner, u16, u64)>,
    label: Option<Box<str>>,
    held: bool,
    /// TCP fell to CLOSE.
    dead: bool,
    /// A family without create and release hooks: the witness alone tells whether it is open.
    unhooked: bool,
    /// The witness met it before any record of it came.
    unannounced: bool,
    /// The last walk that met it.
    walk: u32,
    /// What its byte counters were, and since when.
    moved: Option<(Payload, u64)>,
}

impl Lifetime {
    fn new(brief: &Brief) -> Self {
        Self {
            born_ns: brief.born_ns,
            bound: None,
            label: None,
            held: brief.flags & fact::HELD != 0,
            dead: false,
            unhooked: brief.family != AF_INET && brief.family != AF_INET6,
            unannounced: false,
            walk: 0,
            moved: None,
        }
    }
}

/// When a socket may be overdue, so that the witness should look.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// Sockets of an owner that ended.
    Owner(Owner),
    /// A socket that TCP is done with.
    Socket(u64),
    /// A socket that was bound to nobody at first.
    Unbound(u64),
}

/// Plain counts of what the news told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records applied.
    pub applied: u64,
    /// Sockets bound as listeners.
    pub listeners: u64,
    /// Sockets bound as links.
    pub links: u64,
    /// Streams that a socket was bound to.
    pub streams_bound: u64,
    /// Streams that ended.
    pub streams_ended: u64,
    /// Sockets released, or bound anew, longer than grace after they should have been.
    pub late: u64,
    /// Findings past [`FINDINGS_MAX`] that deny.
    pub unlisted_denied: u64,
    /// Findings past [`FINDINGS_MAX`] that warn.
    pub unlisted_warned: u64,
}

/// What a walk of the witness added up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Sockets met, of the families that have create and release hooks.
    pub open: u64,
    /// Sockets that the ledger has open and the walk did not meet.
    pub only_in_ledger: u64,
    /// Sockets that the walk met and no record told of.
    pub only_in_kernel: u64,
    /// Descriptors of the target's processes for internet sockets that are not of this audit.
    pub strangers: Vec<Holder>,
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    limits: Limits,
    levels: Levels,
    lifetimes: HashMap<u64, Lifetime>,
    owners: Owners,
    /// Some process of the audit annotates.
    annotated: bool,
    due: VecDeque<(u64, Due)>,
    /// The last deadline that did not fit into `due`.
    dropped_due_ns: Option<u64>,
    findings: HashMap<u64, Finding>,
    outlive: Histogram<u64>,
    peers: Peers,
    counts: Counts,
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
    pub fn new(limits: Limits, levels: Levels) -> Self {
        #[expect(
            clippy::expect_used,
            reason = "the bounds are constants that a test covers"
        )]
        let outlive = Histogram::new_with_bounds(1, OUTLIVE_MAX_NS, 3)
            .expect("a range above zero and three digits are valid");
        Self {
            limits,
            levels,
            lifetimes: HashMap::new(),
            owners: Owners::default(),
            annotated: false,
            due: VecDeque::new(),
            dropped_due_ns: None,
            findings: HashMap::new(),
            outlive,
            peers: Peers::default(),
            counts: Counts::default(),
            walk: 0,
            walk_began_ns: 0,
            walked: Walk::default(),
        }
    }

    /// Takes one record of the ring.
    pub fn apply(&mut self, news: &News) {
        self.counts.applied += 1;
        match news {
            News::Created(of) | News::Arrived(of) => self.recv_born(of),
            News::Bound(of) => self.recv_bound(of),
            News::Ended(event) => self.recv_ended(event),
            News::PeerDone(of) => self.due(of.head.at_ns, Due::Socket(of.brief.id)),
            News::Died(of) => self.recv_died(of),
            News::Released(of) => self.recv_released(of),
        }
    }

    fn recv_born(&mut self, of: &BriefEvent) {
        let brief = &of.brief;
        let known = self
            .lifetimes
            .entry(brief.id)
            .or_insert_with(|| Lifetime::new(brief));
        known.unannounced = false;
        if brief.protocol == IPPROTO_TCP && known.bound.is_none() && self.annotated {
            self.due(of.head.at_ns, Due::Unbound(brief.id));
        }
    }

    fn recv_died(&mut self, of: &BriefEvent) {
        if let Some(known) = self.lifetimes.get_mut(&of.brief.id) {
            known.dead = true;
        }
        self.due(of.head.at_ns, Due::Socket(of.brief.id));
    }

    fn recv_bound(&mut self, of: &BoundEvent) {
        let facts = &of.socket.facts;
        self.annotated = true;
        self.judge_former(of);
        self.count_bind(facts);
        self.set_bound(&of.socket);
        if let Some(known) = self.lifetimes.get_mut(&facts.id) {
            known.unannounced = false;
        }
        if self.owners.has_ended(facts.owner) {
            self.due(of.event.head.at_ns, Due::Owner(facts.owner));
        }
    }

    /// A socket that was bound anew longer than grace after its former owner ended has outlived that request.
    fn judge_former(&mut self, of: &BoundEvent) {
        let event = &of.event;
        if of.former_bound_ns == 0 {
            return;
        }
        let mut former = of.socket.facts;
        former.owner = event.former;
        former.role = u16::try_from(event.detail).unwrap_or(u16::MAX);
        former.bound_ns = of.former_bound_ns;
        former.peer_done_ns = 0;
        former.dead_ns = 0;
        let evidence = Evidence {
            facts: &former,
            ends: &event.ends,
            flags: 0,
            moved_ns: None,
            at_ns: event.head.at_ns,
        };
        if let Some(offence) = evidence.offence(&self.limits) {
            self.counts.late += 1;
            let label = self.label_of(former.id);
            self.convict(finding(&evidence, offence, label));
        }
    }

    fn count_bind(&mut self, facts: &Facts) {
        let before = self
            .lifetimes
            .get(&facts.id)
            .and_then(|known| known.bound)
            .map(|(_, role, _)| role);
        if before == Some(facts.role) {
            return;
        }
        match Role::from_u16(facts.role) {
            Some(Role::Listener) => self.counts.listeners += 1,
            Some(Role::Link) => self.counts.links += 1,
            Some(Role::Control | Role::Stream | Role::Pool) | None => {}
        }
    }

    /// Brings a lifetime's owner up to what the kernel keeps.
    fn set_bound(&mut self, socket: &Socket) {
        let facts = &socket.facts;
        let known = self
            .lifetimes
            .entry(facts.id)
            .or_insert_with(|| Lifetime::new(&facts.into()));
        known.held = true;
        let present = (facts.owner, facts.role, facts.bound_ns);
        if known.bound == Some(present) {
            return;
        }
        known.label = Some(label_text(socket).into());
        if let Some((former, _, _)) = known.bound.replace(present) {
            self.owners.unbind(former);
        }
        let as_stream = Role::from_u16(facts.role) == Some(Role::Stream);
        if self.owners.bind(facts.owner, as_stream) {
            self.counts.streams_bound += 1;
        }
    }

    fn recv_ended(&mut self, event: &Event) {
        let owner = event.former;
        self.owners.end(owner);
        if owner.stream != 0 {
            self.counts.streams_ended += 1;
        }
        self.due(event.head.at_ns, Due::Owner(owner));
    }

    fn recv_released(&mut self, of: &SocketEvent) {
        let (event, facts) = (&of.event, &of.facts);
        let label = self.label_of(facts.id);
        self.drop_lifetime(facts.id);
        self.peers.released(facts);
        let evidence = Evidence {
            facts,
            ends: &event.ends,
            flags: event.head.flags,
            moved_ns: None,
            at_ns: event.head.at_ns,
        };
        if let Some(over_ns) = evidence.request_over_ns() {
            let outlive_ns = event.head.at_ns.saturating_sub(over_ns);
            self.outlive.saturating_record(outlive_ns.max(1));
        }
        if let Some(offence) = evidence.offence(&self.limits) {
            if offence.kind != Kind::OpenAtExit {
                self.counts.late += 1;
            }
            let mut finding = finding(&evidence, offence, label);
            finding.released_ns = Some(event.head.at_ns);
            finding.releaser = Some((event.tgid, comm_text(&event.comm)));
            self.convict(finding);
        } else if let Some(finding) = self.findings.get_mut(&facts.id) {
            finding.released_ns = Some(event.head.at_ns);
        }
    }

    fn label_of(&self, id: u64) -> Option<String> {
        let label = self.lifetimes.get(&id)?.label.as_ref()?;
        Some(label.to_string())
    }

    fn drop_lifetime(&mut self, id: u64) {
        if let Some((owner, _, _)) = self.lifetimes.remove(&id).and_then(|known| known.bound) {
            self.owners.unbind(owner);
        }
    }

    /// Keeps a finding. Of several that a socket earns in its life, the one of the earliest rule stays, with the
    /// holders that the witness named.
    fn convict(&mut self, mut finding: Finding) {
        let level = self.levels.of(finding.kind);
        if level == Level::Allow {
            return;
        }
        if let Some(kept) = self.findings.get_mut(&finding.id) {
            // The release says less than the witness did: what it saw stays.
            if finding.holders.is_empty() {
                finding.holders = std::mem::take(&mut kept.holders);
            }
            finding.bytes_in = finding.bytes_in.max(kept.bytes_in);
            finding.bytes_out = finding.bytes_out.max(kept.bytes_out);
            finding.unread = finding.unread.or(kept.unread);
            finding.unsent = finding.unsent.or(kept.unsent);
            finding.tcp_state = finding.tcp_state.or(kept.tcp_state);
            if finding.kind > kept.kind {
                finding.kind = kept.kind;
                finding.since_ns = kept.since_ns;
                finding.ended_ns = kept.ended_ns;
                finding.owner = kept.owner.take();
            }
            *kept = finding;
        } else if self.findings.len() < FINDINGS_MAX {
            self.findings.insert(finding.id, finding);
        } else if level == Level::Deny {
            self.counts.unlisted_denied += 1;
        } else {
            self.counts.unlisted_warned += 1;
        }
    }

    fn due(&mut self, since_ns: u64, due: Due) {
        let at_ns = since_ns.saturating_add(self.limits.grace_ns);
        if self.due.len() < DEADLINES_MAX {
            self.due.push_back((at_ns, due));
        } else {
            self.dropped_due_ns = Some(at_ns);
        }
    }

    /// Whether a socket may have passed its grace by `now_ns`, so that the witness should look. Forgets the deadlines
    /// that have passed.
    pub fn take_overdue(&mut self, now_ns: u64) -> bool {
        let mut overdue = false;
        while let Some((at_ns, due)) = self.due.front().copied() {
            if at_ns >= now_ns {
                break;
            }
            self.due.pop_front();
            overdue |= match due {
                Due::Owner(owner) => self.owners.has_open(owner),
                Due::Socket(id) => self.lifetimes.contains_key(&id),
                Due::Unbound(id) => self
                    .lifetimes
                    .get(&id)
                    .is_some_and(|known| known.bound.is_none()),
            };
        }
        if self.dropped_due_ns.is_some_and(|at_ns| at_ns < now_ns) {
            self.dropped_due_ns = None;
            overdue = true;
        }
        overdue
    }

    /// Returns the owners whose END the kernel may forget.
    pub fn forget_owners(&mut self) -> Vec<Owner> {
        self.owners.forget()
    }

    /// Begins a walk of the witness at `now_ns`.
    pub fn begin_walk(&mut self, now_ns: u64) {
        self.walk = self.walk.wrapping_add(1);
        self.walk_began_ns = now_ns;
        self.walked = Walk::default();
        self.peers.recount();
    }

    /// Takes an open descriptor of a target process for an internet socket that is not of this audit.
    pub fn sight_stranger(&mut self, holder: Holder) {
        if self.walked.strangers.len() < HOLDERS_MAX {
            self.walked.strangers.push(holder);
        }
    }

    /// Takes one open descriptor of a socket of the audit, seen at `now_ns`.
    pub fn sight(&mut self, sight: &Sight, now_ns: u64) {
        let (Some(socket), sighting) = (&sight.socket, &sight.sighting) else {
            return;
        };
        let facts = &socket.facts;
        let holder = Holder {
            pid: sighting.tgid,
            fd: sighting.fd,
            comm: None,
        };
        if self.meet(socket) {
            if let Some(finding) = self.findings.get_mut(&facts.id)
                && finding.seen_ns >= self.walk_began_ns
                && finding.holders.len() < HOLDERS_MAX
            {
                finding.holders.push(holder);
            }
            return;
        }
        let moved_ns = self.observe_bytes(facts, sighting, now_ns);
        let evidence = Evidence {
            facts,
            ends: &sighting.ends,
            flags: sighting.flags & ANNOTATES,
            moved_ns,
            at_ns: now_ns,
        };
        if let Some(offence) = evidence.offence(&self.limits) {
            let mut finding = finding(&evidence, offence, Some(label_text(socket)));
            finding.holders.push(holder);
            finding.tcp_state = is_tcp(facts).then(|| u16::try_from(sighting.state).unwrap_or(0));
            if let Some(payload) = payload_seen(facts, sighting) {
                finding.bytes_in = Some(payload.received);
                finding.bytes_out = Some(payload.acknowledged);
                // A FIN waits to be read like a byte.
                let fin = u32::from(facts.peer_done_ns != 0);
                finding.unread = Some(sighting.unread.saturating_sub(fin));
                finding.unsent = Some(sighting.unsent);
            }
            self.convict(finding);
        } else if facts.held_ns >= self.walk_began_ns {
            // Its descriptor was not known before this walk: its time begins now.
            self.due(facts.held_ns, Due::Socket(facts.id));
        }
    }

    /// Marks a socket as met in this walk; `true` when it was met in it before.
    fn meet(&mut self, socket: &Socket) -> bool {
        let facts = &socket.facts;
        let unknown = !self.lifetimes.contains_key(&facts.id);
        if facts.bound_ns != 0 {
            self.set_bound(socket);
        }
        let known = self
            .lifetimes
            .entry(facts.id)
            .or_insert_with(|| Lifetime::new(&facts.into()));
        known.unannounced |= unknown;
        known.held = true;
        if known.walk == self.walk {
            return true;
        }
        known.walk = self.walk;
        if !known.unhooked {
            self.walked.open += 1;
        }
        self.peers.open(facts);
        false
    }

    /// Returns when the last byte was seen to move, for sockets that count bytes.
    fn observe_bytes(&mut self, facts: &Facts, sighting: &Sighting, now_ns: u64) -> Option<u64> {
        let seen = payload_seen(facts, sighting)?;
        let known = self.lifetimes.get_mut(&facts.id)?;
        match known.moved {
            Some((before, since_ns)) if before == seen => Some(since_ns),
            Some(_) => {
                known.moved = Some((seen, now_ns));
                Some(now_ns)
            }
            None => {
                let since_ns = if seen == Payload::default() {
                    facts.born_ns.max(facts.bound_ns)
                } else {
                    now_ns
                };
                known.moved = Some((seen, since_ns));
                Some(since_ns)
            }
        }
    }

    /// Ends a walk, after the news that came during it was applied. When records were lost before it (`lossy`), sockets
    /// that it did not meet are taken for released; otherwise they are a disagreement.
    pub fn finish_walk(&mut self, lossy: bool) -> Walk {
        let mut gone = Vec::new();
        for (id, known) in &mut self.lifetimes {
            if known.walk == self.walk {
                if known.unannounced && !known.unhooked {
                    known.unannounced = false;
                    self.walked.only_in_kernel += u64::from(!lossy);
                }
                continue;
            }
            if known.born_ns >= self.walk_began_ns {
                continue;
            }
            match (known.held, lossy || known.unhooked) {
                (true, true) => gone.push(*id),
                (true, false) => self.walked.only_in_ledger += 1,
                // In a backlog still, or died there.
                (false, _) if known.dead || lossy => gone.push(*id),
                (false, _) => {}
            }
        }
        for id in gone {
            self.drop_lifetime(id);
        }
        std::mem::take(&mut self.walked)
    }

    /// Asks `name` for the names of holders that have none yet.
    pub fn name_holders(&mut self, mut name: impl FnMut(u32) -> Option<String>) {
        let holders = self
            .findings
            .values_mut()
            .filter(|finding| finding.released_ns.is_none())
            .flat_map(|finding| &mut finding.holders)
            .filter(|holder| holder.comm.is_none());
        for holder in holders {
            holder.comm = name(holder.pid);
        }
    }

    /// Returns the number of sockets that the ledger has open with a descriptor.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lifetimes.values().filter(|known| known.held).count()
    }

    /// Returns the findings, those that deny first, then by rule and age.
    #[must_use]
    pub fn findings(&self) -> Vec<&Finding> {
        let mut findings: Vec<&Finding> = self.findings.values().collect();
        findings.sort_by_key(|finding| {
            let warns = self.levels.of(finding.kind) == Level::Warn;
            (warns, finding.kind, finding.since_ns, finding.id)
        });
        findings
    }

    /// Returns how many findings stand at a level, those without evidence included.
    #[must_use]
    pub fn standing(&self, level: Level) -> u64 {
        let listed = self
            .findings
            .values()
            .filter(|finding| self.levels.of(finding.kind) == level)
            .count();
        let unlisted = match level {
            Level::Deny => self.counts.unlisted_denied,
            Level::Warn => self.counts.unlisted_warned,
            Level::Allow => 0,
        };
        u64::try_from(listed)
            .unwrap_or(u64::MAX)
            .saturating_add(unlisted)
    }

    /// Returns the plain counts.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns the levels.
    #[must_use]
    pub fn levels(&self) -> &Levels {
        &self.levels
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

fn finding(evidence: &Evidence<'_>, offence: Offence, label: Option<String>) -> Finding {
    let facts = evidence.facts;
    // Counted at the last state change: no more comes in after CLOSE_WAIT, nothing moves at all after CLOSE.
    let payload = payload(facts, facts.bytes_received, facts.bytes_acked);
    let dead = facts.dead_ns != 0;
    let peer_done = facts.peer_done_ns != 0;
    Finding {
        kind: offence.kind,
        id: facts.id,
        cookie: (facts.cookie != 0).then_some(facts.cookie),
        tuple: tuple(facts),
        tcp_state: (is_tcp(facts) && facts.state != 0).then_some(facts.state),
        owner: (facts.bound_ns != 0).then(|| OwnerNote {
            owner: facts.owner,
            role: Role::from_u16(facts.role),
            label,
        }),
        holders: Vec::new(),
        opener: (facts.opener != 0).then(|| (facts.opener, comm_text(&facts.comm))),
        opened_ns: facts.born_ns,
        ended_ns: ended(evidence.ends),
        since_ns: offence.since_ns,
        released_ns: None,
        releaser: None,
        seen_ns: evidence.at_ns,
        bytes_in: (dead || peer_done).then_some(payload.received),
        bytes_out: dead.then_some(payload.acknowledged),
        unread: None,
        unsent: None,
    }
}

fn ended(ends: &Ends) -> Option<u64> {
    [ends.own_ns, ends.session_ns]
        .into_iter()
        .find(|at_ns| *at_ns != 0)
}

#[cfg(test)]
mod tests;
