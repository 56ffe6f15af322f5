//! Piles: connections that a program opened, used, and keeps although newer ones do their work.
//!
//! Such a leak is known from outside only: no annotation, no CLOSE_WAIT. A connection that the
//! program opened is *passed over* when no byte has moved on it for grace, and the same process
//! then opened a newer connection to the same target that did move bytes: the older one could have
//! served, and did not. The passed-over connections of one process to one target that have not
//! moved a byte since are a pile. Pools and subscriptions that are quiet on purpose look just like
//! it, and stand still: the size of the pile when its oldest member has been in it for a while is
//! its baseline, and only growth above that tells.
//!
//! UDP has no byte counts: a UDP socket is passed over when a newer one to the same target was
//! made, or when both have no target and are of the same family.
//!
//! A crawler that pins one connection to each origin has no pile to any target. The passed-over
//! connections of one process to all targets are a pile too, of which only a note is made.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use tracer_abi::annotation::Role;
use tracer_abi::facts::{AF_INET, Facts, IPPROTO_TCP, IPPROTO_UDP, fact};

use super::tcp::address;
use crate::event::comm_text;

/// How many piles are kept. The connections to further targets are not judged.
const PILES_MAX: usize = 1 << 16;

/// When a pile counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PileLimits {
    /// How long a member must have been in a pile until the pile's size is its baseline, in
    /// nanoseconds.
    pub after_ns: u64,
    /// By how many members a pile must grow above its baseline.
    pub growth: usize,
}

/// Whose connections to where: the process that opened them, and the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PileKey {
    opener: u32,
    target: PileTarget,
}

/// Where the connections of a pile go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PileTarget {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    /// UDP sockets of one family, without a target.
    Unconnected {
        is_ipv4: bool,
    },
    /// TCP connections to all targets.
    All,
}

impl PileKey {
    /// Returns the pile that a connection would be in; `None` for sockets that are never in one:
    /// those that others opened, those that serve a request of their own, and those that are
    /// neither TCP nor UDP.
    pub(super) fn of(facts: &Facts) -> Option<Self> {
        let is_pooled = Role::from_u16(facts.role) == Some(Role::Pool);
        let serves = facts.bound_ns != 0 && !is_pooled;
        if serves || facts.opener == 0 {
            return None;
        }
        let has_target = facts.flags & fact::DIALED != 0 && facts.remote_port != 0;
        let remote = SocketAddr::new(address(facts.family, facts.remote), facts.remote_port);
        let target = match (facts.protocol, has_target) {
            (IPPROTO_TCP, true) => PileTarget::Tcp(remote),
            (IPPROTO_UDP, true) => PileTarget::Udp(remote),
            (IPPROTO_UDP, false) => PileTarget::Unconnected {
                is_ipv4: facts.family == AF_INET,
            },
            _ => return None,
        };
        Some(Self {
            opener: facts.opener,
            target,
        })
    }

    /// Returns the pile of the same process over all targets.
    const fn of_all(self) -> Self {
        Self {
            target: PileTarget::All,
            ..self
        }
    }
}

impl fmt::Display for PileTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Udp(address) => write!(f, "{address} by UDP"),
            Self::Unconnected { is_ipv4: true } => f.write_str("no target by UDP over IPv4"),
            Self::Unconnected { is_ipv4: false } => f.write_str("no target by UDP over IPv6"),
            Self::All => f.write_str("all targets"),
        }
    }
}

/// A connection as one walk met it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) key: PileKey,
    pub(super) id: u64,
    pub(super) born_ns: u64,
    /// When a byte last moved; its birth for one that moved none, and for UDP.
    pub(super) last_byte_ns: u64,
    /// The longest time without a byte that a byte ended, in nanoseconds.
    pub(super) longest_silence_ns: u64,
    /// Whether it has moved a byte, as is assumed of UDP.
    pub(super) is_used: bool,
    /// `task_struct.comm` of the process that opened it.
    pub(super) comm: [u8; 16],
}

impl Sample {
    /// Whether it is silent for much longer than before any earlier byte. One that the program
    /// comes back to now and then, as to each tenant's pool, is in use although newer ones are
    /// opened.
    fn is_abandoned(&self, now_ns: u64) -> bool {
        let silence_ns = now_ns.saturating_sub(self.last_byte_ns);
        silence_ns > self.longest_silence_ns.saturating_mul(2)
    }
}

/// All piles.
#[derive(Debug, Default)]
pub(super) struct Piles {
    piles: HashMap<PileKey, Pile>,
    samples: Vec<Sample>,
    /// The members of piles that grew, as of the last walk, and when each joined its pile.
    grown: HashMap<u64, u64>,
    /// The processes whose connections were released by their exit: it proves nothing, so their
    /// piles stay as they were.
    exited: HashMap<u32, u64>,
    /// Members of piles that grew which were released soon after they had joined, and when.
    drained: Vec<(u64, u64)>,
}

/// What a walk changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PileChange {
    /// Whether connections became members of a pile that grew.
    pub(super) has_grown: bool,
    /// Connections that no longer are, since they moved a byte or were released soon.
    pub(super) cleared: Vec<u64>,
}

/// The passed-over connections of one process to one target.
#[derive(Debug, Default)]
struct Pile {
    /// When the newest connection that moved a byte was opened.
    newest_used_ns: u64,
    members: HashMap<u64, Member>,
    baseline: Option<Baseline>,
    /// `task_struct.comm` of the process.
    comm: [u8; 16],
}

/// The size at which a pile stood still.
#[derive(Clone, Copy, Debug)]
struct Baseline {
    size: usize,
    since_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    joined_ns: u64,
    last_byte_ns: u64,
}

/// A pile as it is now, for metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct PileSize {
    /// The name of the process that opened the connections, as it was then.
    pub comm: String,
    /// Where they go.
    pub target: String,
    /// How many connections are in it.
    pub size: usize,
    /// How many of them joined in the last ten minutes, for each minute.
    pub growth_per_min: f64,
}

/// A pile that is reported in a note, without a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PileNote {
    /// The process that opened the connections.
    pub opener: u32,
    /// Its name, as it was when it opened the first of them.
    pub comm: String,
    /// Where they go.
    pub target: String,
    /// How many connections are in it.
    pub size: usize,
    /// What is missing for a finding.
    pub state: PileState,
}

/// Why a pile is no finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PileState {
    /// Its oldest member has not been in it for long enough.
    Young,
    /// It did not grow since.
    Steady,
    /// It grew, over many targets: none has enough.
    Spread,
}

impl Piles {
    pub(super) fn begin_walk(&mut self) {
        self.samples.clear();
    }

    pub(super) fn observe(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Records that a connection was released at `at_ns` only because the process that opened it
    /// exited.
    pub(super) fn opener_exited(&mut self, opener: u32, at_ns: u64) {
        if self.exited.len() < PILES_MAX {
            self.exited.insert(opener, at_ns);
        }
    }

    /// Forgets what processes had as they exited.
    pub(super) fn forget_exited(&mut self) {
        self.exited.clear();
    }

    /// Records a release that no exit caused. A burst drains like this: a connection that was in
    /// its pile for a short time is no leak.
    pub(super) fn recv_released(&mut self, id: u64, at_ns: u64, limits: &PileLimits) {
        let soon = |joined_ns| at_ns.saturating_sub(joined_ns) < limits.after_ns;
        if self.joined_ns(id).is_some_and(soon) {
            self.drained.push((id, at_ns));
        }
    }

    /// Returns when a connection joined a pile that grew, if it did.
    pub(super) fn joined_ns(&self, id: u64) -> Option<u64> {
        self.grown.get(&id).copied()
    }

    /// Ends a walk at `now_ns`: connections join piles and leave them.
    pub(super) fn finish_walk(
        &mut self,
        now_ns: u64,
        grace_ns: u64,
        limits: &PileLimits,
    ) -> PileChange {
        let mut by_key: HashMap<PileKey, Vec<Sample>> = HashMap::new();
        for sample in std::mem::take(&mut self.samples) {
            // The number of a process is used again.
            let opener = sample.key.opener;
            let exited_ns = self.exited.get(&opener);
            if exited_ns.is_some_and(|at_ns| *at_ns < sample.born_ns) {
                self.exited.remove(&opener);
            }
            if let PileTarget::Tcp(_) = sample.key.target {
                by_key.entry(sample.key.of_all()).or_default().push(sample);
            }
            by_key.entry(sample.key).or_default().push(sample);
        }
        let exited = &self.exited;
        self.piles
            .retain(|key, _| by_key.contains_key(key) || exited.contains_key(&key.opener));
        let before = std::mem::take(&mut self.grown);
        let mut change = PileChange::default();
        for (key, samples) in by_key {
            if self.exited.contains_key(&key.opener) {
                continue;
            }
            // A single connection was never passed over.
            let is_new = !self.piles.contains_key(&key);
            if is_new && (samples.len() < 2 || self.piles.len() >= PILES_MAX) {
                continue;
            }
            let pile = self.piles.entry(key).or_default();
            pile.settle(&samples, now_ns, grace_ns);
            pile.rebase(now_ns, limits);
            if key.target == PileTarget::All {
                continue;
            }
            self.grown.extend(pile.growth(limits));
            let ids = samples.iter().map(|sample| sample.id);
            change
                .cleared
                .extend(ids.filter(|id| before.contains_key(id) && !self.grown.contains_key(id)));
        }
        // Programs release what they have kept as they end: what is released just before the audit
        // is over was kept to the end.
        let drained = self
            .drained
            .extract_if(.., |(_, at_ns)| at_ns.saturating_add(grace_ns) < now_ns);
        change.cleared.extend(drained.map(|(id, _)| id));
        change.has_grown = self.grown.keys().any(|id| !before.contains_key(id));
        change
    }

    /// Returns the piles of at least as many members as a finding needs, that are no finding.
    pub(super) fn notes(&self, limits: &PileLimits) -> Vec<PileNote> {
        let mut notes: Vec<PileNote> = self
            .piles
            .iter()
            .filter(|(_, pile)| pile.members.len() >= limits.growth)
            .filter_map(|(key, pile)| {
                let has_grown = pile.growth(limits).next().is_some();
                let state = match (key.target, pile.baseline) {
                    // What stands still to all targets are pools, one for each.
                    (PileTarget::All, _) if has_grown && self.is_spread(key.opener, limits) => {
                        PileState::Spread
                    }
                    (PileTarget::All, _) => return None,
                    _ if has_grown => return None,
                    (_, Some(_)) => PileState::Steady,
                    (_, None) => PileState::Young,
                };
                Some(PileNote {
                    opener: key.opener,
                    comm: comm_text(&pile.comm),
                    target: key.target.to_string(),
                    size: pile.members.len(),
                    state,
                })
            })
            .collect();
        notes.sort_by(|a, b| (b.size, a.opener, &a.target).cmp(&(a.size, b.opener, &b.target)));
        notes
    }

    /// Returns the size of each pile, the largest first, as of a walk at `now_ns`.
    pub(super) fn sizes(&self, now_ns: u64) -> Vec<PileSize> {
        let mut sizes: Vec<PileSize> = self
            .piles
            .iter()
            .filter(|(key, pile)| key.target != PileTarget::All && !pile.members.is_empty())
            .map(|(key, pile)| PileSize {
                comm: comm_text(&pile.comm),
                target: key.target.to_string(),
                size: pile.members.len(),
                growth_per_min: pile.growth_per_min(now_ns),
            })
            .collect();
        sizes.sort_by(|a, b| (b.size, &a.comm, &a.target).cmp(&(a.size, &b.comm, &b.target)));
        sizes
    }

    /// Whether no single pile of a process is large enough for a finding.
    fn is_spread(&self, opener: u32, limits: &PileLimits) -> bool {
        let own = self.piles.iter().filter(|(key, _)| key.opener == opener);
        own.filter(|(key, _)| key.target != PileTarget::All)
            .all(|(_, pile)| pile.members.len() < limits.growth)
    }
}

impl Pile {
    /// Adds the connections that were passed over, and removes those that were released or moved a
    /// byte.
    fn settle(&mut self, samples: &[Sample], now_ns: u64, grace_ns: u64) {
        let used = samples.iter().filter(|sample| sample.is_used);
        let newest_ns = used.map(|sample| sample.born_ns).max().unwrap_or_default();
        self.newest_used_ns = self.newest_used_ns.max(newest_ns);
        if let (Some(first), true) = (samples.first(), self.members.is_empty()) {
            self.comm = first.comm;
        }
        let mut members = HashMap::with_capacity(self.members.len());
        for sample in samples {
            let joined_ns = match self.members.get(&sample.id) {
                Some(member) if member.last_byte_ns == sample.last_byte_ns => member.joined_ns,
                Some(_) | None => now_ns,
            };
            if self.newest_used_ns > sample.last_byte_ns.saturating_add(grace_ns)
                && sample.is_abandoned(now_ns)
            {
                let last_byte_ns = sample.last_byte_ns;
                members.insert(
                    sample.id,
                    Member {
                        joined_ns,
                        last_byte_ns,
                    },
                );
            }
        }
        self.members = members;
    }

    fn growth_per_min(&self, now_ns: u64) -> f64 {
        const MINUTES: u32 = 10;
        let window_ns = u64::from(MINUTES) * 60_000_000_000;
        let members = self.members.values();
        let joined = members.filter(|it| now_ns.saturating_sub(it.joined_ns) < window_ns);
        f64::from(u32::try_from(joined.count()).unwrap_or(u32::MAX)) / f64::from(MINUTES)
    }

    fn rebase(&mut self, now_ns: u64, limits: &PileLimits) {
        let size = self.members.len();
        let oldest_ns = self.members.values().map(|member| member.joined_ns).min();
        self.baseline = match (self.baseline, oldest_ns) {
            (_, None) => None,
            (Some(baseline), Some(_)) => Some(Baseline {
                size: baseline.size.min(size),
                ..baseline
            }),
            (None, Some(oldest_ns)) => (now_ns >= oldest_ns.saturating_add(limits.after_ns))
                .then_some(Baseline {
                    size,
                    since_ns: now_ns,
                }),
        };
    }

    /// Returns the members that joined after the baseline, once there are enough above it.
    fn growth(&self, limits: &PileLimits) -> impl Iterator<Item = (u64, u64)> {
        let size = self.members.len();
        let since_ns = self
            .baseline
            .filter(|baseline| size >= baseline.size.saturating_add(limits.growth))
            .map(|baseline| baseline.since_ns);
        let members = self.members.iter();
        members
            .filter(move |(_, member)| since_ns.is_some_and(|since_ns| member.joined_ns > since_ns))
            .map(|(id, member)| (*id, member.joined_ns))
    }
}

#[cfg(test)]
mod tests;
