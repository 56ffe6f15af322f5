//! The findings, each with its evidence.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use tracer_abi::annotation::Role;
use tracer_abi::facts::{Ends, fact};

use super::payload::payload;
use super::rules::{Evidence, Violation};
use super::tcp::{is_tcp, tuple};
use crate::event::comm_text;
use crate::verdict::{Finding, Holder, Kind, Level, Levels, OwnerInfo, ProcessName};

/// How many findings are kept with their evidence.
const FINDINGS_MAX: usize = 1 << 17;
/// Of how many more the sockets are known, so that their number is exact.
const UNLISTED_MAX: usize = 1 << 21;
/// How many holders a finding names. Others are only counted.
const HOLDERS_MAX: usize = 4096;

/// The findings of an audit, at most one for each socket, and the level of each kind.
#[derive(Debug)]
pub struct Findings {
    levels: Levels,
    /// Boxed: a table of whole findings would take twice the memory while it grows.
    findings: HashMap<u64, Box<Finding>>,
    /// Findings past [`FINDINGS_MAX`], without evidence: a socket may be found more than once.
    unlisted: HashMap<u64, Kind>,
    /// Findings past [`UNLISTED_MAX`], which are only counted, each time.
    uncounted: HashMap<Level, u64>,
    /// What has changed, when the findings are followed.
    news: Option<News>,
}

/// What has changed since the changes were last taken.
#[derive(Debug, Default)]
struct News {
    /// Sockets with a new finding.
    found: Vec<u64>,
    /// Findings that are over.
    resolved: Vec<Finding>,
    /// Findings of each kind that there ever were.
    ever: HashMap<Kind, u64>,
}

/// A change of the findings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A rule is broken.
    Found(Finding),
    /// It is broken no longer: the socket is released, or does again what it should.
    Resolved(Finding),
}

impl Findings {
    pub(super) fn new(levels: Levels) -> Self {
        Self {
            levels,
            findings: HashMap::new(),
            unlisted: HashMap::new(),
            uncounted: HashMap::new(),
            news: None,
        }
    }

    /// From now on, keeps changes until they are taken, and findings only as long as their rules
    /// are broken: for an audit without an end.
    pub(super) fn follow(&mut self) {
        self.news = Some(News::default());
    }

    /// Whether changes are kept.
    pub(super) fn is_followed(&self) -> bool {
        self.news.is_some()
    }

    /// Returns what has changed since the last call: first what was found, then what is resolved.
    /// Nothing unless they are followed.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        let Some(news) = &mut self.news else {
            return Vec::new();
        };
        let resolved = std::mem::take(&mut news.resolved);
        let by_id: HashMap<u64, &Finding> = resolved.iter().map(|it| (it.id, it)).collect();
        let mut changes = Vec::new();
        for id in std::mem::take(&mut news.found) {
            let open = self.findings.get(&id).map(AsRef::as_ref);
            let finding = open.or_else(|| by_id.get(&id).copied());
            changes.extend(finding.cloned().map(Change::Found));
        }
        changes.extend(resolved.into_iter().map(Change::Resolved));
        changes
    }

    /// Returns how many findings of a kind there ever were; `None` unless they are followed.
    #[must_use]
    pub fn ever(&self, kind: Kind) -> Option<u64> {
        let news = self.news.as_ref()?;
        Some(news.ever.get(&kind).copied().unwrap_or(0))
    }

    /// Ends a finding whose rule is broken no longer, when the findings are followed.
    pub(super) fn resolve(&mut self, id: u64) {
        if let Some(news) = &mut self.news {
            news.resolved
                .extend(self.findings.remove(&id).map(|it| *it));
            self.unlisted.remove(&id);
        }
    }

    /// Returns the kind of a socket's finding, when the findings are followed.
    pub(super) fn followed_kind(&self, id: u64) -> Option<Kind> {
        self.news.as_ref()?;
        self.findings.get(&id).map(|finding| finding.kind)
    }

    /// Records a finding. If a socket already has one, the one of the earlier rule is kept, with
    /// the holders that the witness named.
    pub(super) fn record(&mut self, mut finding: Finding) {
        let level = self.levels.of(finding.kind);
        if level == Level::Allow {
            return;
        }
        if let Some(kept) = self.findings.get_mut(&finding.id) {
            // The release knows less than the witness: keep what it saw.
            if finding.holders.is_empty() {
                finding.holders = std::mem::take(&mut kept.holders);
                finding.holders_unlisted = kept.holders_unlisted;
            }
            finding.bytes_in = finding.bytes_in.max(kept.bytes_in);
            finding.bytes_out = finding.bytes_out.max(kept.bytes_out);
            finding.unread = finding.unread.or(kept.unread);
            finding.unsent = finding.unsent.or(kept.unsent);
            if finding.kind < kept.kind {
                finding.tcp_state = finding.tcp_state.or(kept.tcp_state);
            } else {
                // The state in which the rule was broken, not the last one.
                finding.tcp_state = kept.tcp_state.or(finding.tcp_state);
            }
            if finding.kind > kept.kind {
                finding.kind = kept.kind;
                finding.since_ns = kept.since_ns;
                finding.ended_ns = kept.ended_ns;
                finding.owner = kept.owner.take();
            }
            let (id, is_over) = (finding.id, finding.released_ns.is_some());
            **kept = finding;
            if is_over {
                self.resolve(id);
            }
        } else if self.findings.len() < FINDINGS_MAX && !self.unlisted.contains_key(&finding.id) {
            let (id, kind, is_over) = (finding.id, finding.kind, finding.released_ns.is_some());
            self.findings.insert(id, Box::new(finding));
            if let Some(news) = &mut self.news {
                news.found.push(id);
                *news.ever.entry(kind).or_default() += 1;
            }
            if is_over {
                self.resolve(id);
            }
        } else {
            self.record_unlisted(&finding, level);
        }
    }

    /// Counts a finding whose evidence is not kept.
    fn record_unlisted(&mut self, finding: &Finding, level: Level) {
        let is_full = self.unlisted.len() >= UNLISTED_MAX;
        match self.unlisted.entry(finding.id) {
            Entry::Occupied(mut kept) => {
                let earlier = finding.kind.min(*kept.get());
                kept.insert(earlier);
            }
            Entry::Vacant(_) if is_full => *self.uncounted.entry(level).or_default() += 1,
            Entry::Vacant(free) => {
                free.insert(finding.kind);
                if let Some(news) = &mut self.news {
                    *news.ever.entry(finding.kind).or_default() += 1;
                }
            }
        }
        if finding.released_ns.is_some() {
            self.resolve(finding.id);
        }
    }

    /// Marks a socket as released, if it has a finding.
    pub(super) fn mark_released(&mut self, id: u64, at_ns: u64) {
        if let Some(finding) = self.findings.get_mut(&id) {
            finding.released_ns = Some(at_ns);
        }
        self.resolve(id);
    }

    /// Withdraws a finding of this kind: its rule is broken no longer, and was not for long.
    pub(super) fn withdraw(&mut self, id: u64, kind: Kind) {
        if self.findings.get(&id).is_some_and(|it| it.kind == kind) {
            self.resolve(id);
            self.findings.remove(&id);
        }
        if self.unlisted.get(&id) == Some(&kind) {
            self.unlisted.remove(&id);
        }
    }

    /// Adds a holder to a finding that was recorded, or updated, at `since_ns` or later.
    pub(super) fn add_holder(&mut self, id: u64, since_ns: u64, holder: Holder) {
        if let Some(finding) = self.findings.get_mut(&id)
            && finding.seen_ns >= since_ns
        {
            let is_same = |known: &Holder| (known.pid, known.fd) == (holder.pid, holder.fd);
            // Threads that share a table of descriptors are observed one by one.
            if finding.holders.iter().any(is_same) {
                return;
            }
            if finding.holders.len() < HOLDERS_MAX {
                finding.holders.push(holder);
            } else {
                finding.holders_unlisted += 1;
            }
        }
    }

    /// Whether a socket has a finding.
    pub(super) fn contains(&self, id: u64) -> bool {
        self.findings.contains_key(&id) || self.unlisted.contains_key(&id)
    }

    /// Asks `name` for the names of holders that have none yet.
    pub(super) fn name_holders(&mut self, mut name: impl FnMut(u32) -> Option<Arc<ProcessName>>) {
        let holders = self
            .findings
            .values_mut()
            .filter(|finding| finding.released_ns.is_none())
            .flat_map(|finding| &mut finding.holders)
            .filter(|holder| holder.name.is_none());
        for holder in holders {
            holder.name = name(holder.pid);
        }
    }

    /// Returns the findings that are kept, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.findings.values().map(AsRef::as_ref)
    }

    /// Returns the findings: denied ones first, then by rule and age.
    #[must_use]
    pub fn sorted(&self) -> Vec<&Finding> {
        let mut findings: Vec<&Finding> = self.findings.values().map(AsRef::as_ref).collect();
        findings.sort_by_key(|finding| {
            let warns = self.levels.of(finding.kind) == Level::Warn;
            (warns, finding.kind, finding.since_ns, finding.id)
        });
        findings
    }

    /// Returns how many findings have a level, including those without evidence.
    #[must_use]
    pub fn count(&self, level: Level) -> u64 {
        let listed = self
            .findings
            .values()
            .filter(|finding| self.levels.of(finding.kind) == level)
            .count();
        let unlisted = self
            .unlisted
            .values()
            .filter(|kind| self.levels.of(**kind) == level)
            .count();
        let uncounted = self.uncounted.get(&level).copied().unwrap_or_default();
        u64::try_from(listed + unlisted)
            .unwrap_or(u64::MAX)
            .saturating_add(uncounted)
    }

    /// Returns the levels.
    #[must_use]
    pub fn levels(&self) -> &Levels {
        &self.levels
    }
}

/// Makes a finding from the evidence, without holders.
pub(super) fn new_finding(evidence: &Evidence<'_>, violation: Violation, label: String) -> Finding {
    let facts = evidence.facts;
    // The counters are of the last state change. No byte comes in after CLOSE_WAIT, and none is
    // sent after CLOSE.
    let payload = payload(facts, facts.bytes_received, facts.bytes_acked);
    let dead = facts.dead_ns != 0;
    let peer_done = facts.flags & fact::PEER_FIN != 0;
    Finding {
        kind: violation.kind,
        id: facts.id,
        cookie: (facts.cookie != 0).then_some(facts.cookie),
        tuple: tuple(facts),
        accepted: facts.flags & fact::CHILD != 0,
        tcp_state: (is_tcp(facts) && facts.state != 0).then_some(facts.state),
        owner: (facts.bound_ns != 0).then(|| OwnerInfo {
            owner: facts.owner,
            role: Role::from_u16(facts.role),
            label: Some(label),
        }),
        holders: Vec::new(),
        holders_unlisted: 0,
        opener: (facts.opener != 0).then(|| (facts.opener, comm_text(&facts.comm))),
        born_ns: facts.born_ns,
        is_adopted: facts.flags & fact::ADOPTED != 0,
        ended_ns: ended(evidence.ends),
        since_ns: violation.since_ns,
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
mod tests {
    use super::*;

    fn finding(id: u64, kind: Kind) -> Finding {
        Finding {
            kind,
            id,
            cookie: None,
            tuple: None,
            accepted: false,
            tcp_state: None,
            owner: None,
            holders: Vec::new(),
            holders_unlisted: 0,
            opener: None,
            born_ns: 0,
            is_adopted: false,
            ended_ns: None,
            since_ns: 0,
            released_ns: None,
            releaser: None,
            seen_ns: 0,
            bytes_in: None,
            bytes_out: None,
            unread: None,
            unsent: None,
        }
    }

    /// A socket may be found again: by a later walk, by another rule, and when it is released.
    #[test]
    #[cfg_attr(miri, ignore = "as many findings as are kept take it too long")]
    fn the_total_is_exact_past_the_findings_that_are_kept() {
        let levels = Levels::default();
        let kind = Kind::ALL.into_iter();
        let kind = kind.filter(|kind| levels.of(*kind) == Level::Deny);
        let [first, second] = kind.take(2).collect::<Vec<_>>()[..] else {
            panic!("there are fewer");
        };
        let mut findings = Findings::new(levels);
        let total = u64::try_from(FINDINGS_MAX).unwrap() + 1000;
        for again in 0..3 {
            for id in 0..total {
                let mut finding = finding(id, if again == 1 { first } else { second });
                finding.released_ns = (again == 2).then_some(1);
                findings.record(finding);
            }
            assert_eq!(findings.count(Level::Deny), total, "{again}");
        }
        assert_eq!(findings.sorted().len(), FINDINGS_MAX);
        assert!(findings.contains(total - 1));
        findings.withdraw(total - 1, first);
        assert_eq!(findings.count(Level::Deny), total - 1);
    }
}
