//! The witness's walks: every open descriptor is observed, and the ledger is corrected.

use tracer_abi::facts::{Facts, IPPROTO_TCP, IPPROTO_UDP, fact};
use tracer_abi::record::ANNOTATES;
use tracer_abi::sighting::Sighting;

use super::deadlines::Deadline;
use super::findings::new_finding;
use super::lifetime::Lifetime;
use super::payload::{Payload, is_reset, payload_seen, unread, unsent};
use super::piles::{PileKey, Sample};
use super::rules::{Evidence, Sampled};
use super::state::Ledger;
use super::tcp::{TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LISTEN, is_tcp};
use super::walk::{ForeignSocket, Walk, sort};
use crate::event::{Descriptor, label_text};
use crate::verdict::{Holder, Kind};

/// How many foreign sockets a walk lists.
const FOREIGN_MAX: usize = 4096;
/// How many sockets that no rule judges are told apart in a walk.
const UNJUDGED_MAX: usize = 1 << 17;

/// Returns the facts, with the time of death only if TCP says CLOSE: a socket that was told to
/// connect may still wait for its first bytes (TCP_FASTOPEN_CONNECT). In CLOSE_WAIT, the clock
/// starts again with each byte that is sent.
fn as_observed(facts: &Facts, sighting: &Sighting) -> Facts {
    let is = |state: u16| sighting.state == u32::from(state);
    let is_sending = is(TCP_CLOSE_WAIT) && facts.peer_done_ns != 0;
    Facts {
        dead_ns: if is(TCP_CLOSE) { facts.dead_ns } else { 0 },
        peer_done_ns: facts
            .peer_done_ns
            .max(if is_sending { sighting.sent_ns } else { 0 }),
        ..*facts
    }
}

/// Whether a rule applies to the socket as long as it is open.
fn is_judged(facts: &Facts) -> bool {
    facts.bound_ns != 0 || matches!(facts.protocol, IPPROTO_TCP | IPPROTO_UDP)
}

impl Ledger {
    /// Begins a walk of the witness at `now_ns`.
    pub fn begin_walk(&mut self, now_ns: u64) {
        self.walk = self.walk.wrapping_add(1);
        self.walk_began_ns = now_ns;
        self.walked = Walk::default();
        self.unjudged.clear();
        self.connections.begin_walk();
        self.piles.begin_walk();
    }

    /// Adds an internet socket from outside the audit that an audited process holds.
    pub fn observe_foreign(&mut self, foreign: ForeignSocket) {
        if self.walked.foreign_sockets.len() < FOREIGN_MAX {
            self.walked.foreign_sockets.push(foreign);
        }
    }

    /// Adds a socket that an audited process holds, of a family that the audit does not follow
    /// unless it is annotated.
    pub fn observe_unfollowed(&mut self, sighting: &Sighting) {
        self.count_unjudged(sighting);
    }

    /// Counts a socket that no rule judges, once. Further descriptors of it count again when there
    /// are more such sockets than [`UNJUDGED_MAX`].
    fn count_unjudged(&mut self, sighting: &Sighting) {
        if self.unjudged.len() >= UNJUDGED_MAX || self.unjudged.insert(sighting.cookie) {
            let sort = sort(sighting.family, sighting.protocol);
            *self.walked.unjudged.entry(sort).or_default() += 1;
        }
    }

    /// Adds an open descriptor of a socket of the audit, as it was at `now_ns`.
    pub fn observe(&mut self, descriptor: &Descriptor, now_ns: u64) {
        let (Some(socket), sighting) = (&descriptor.socket, &descriptor.sighting) else {
            return;
        };
        let facts = &self.with_way(as_observed(&socket.facts, sighting), sighting);
        let holder = Holder {
            pid: sighting.tgid,
            fd: sighting.fd,
            name: None,
        };
        if self.meet(facts) {
            self.findings
                .add_holder(facts.id, self.walk_began_ns, holder);
            return;
        }
        let last_byte_ns = self.observe_bytes(facts, sighting, now_ns);
        self.observe_pile(facts, last_byte_ns);
        if !is_judged(facts) {
            self.count_unjudged(sighting);
        }
        let lifetime = self.lifetimes.get_mut(&facts.id);
        let sampled = Sampled {
            last_byte_ns,
            piled_ns: self.piles.joined_ns(facts.id),
            stalled_ns: lifetime.and_then(|it| it.stall.observe(facts, sighting, now_ns)),
        };
        let evidence = Evidence {
            facts,
            ends: &sighting.ends,
            flags: sighting.flags & ANNOTATES,
            sampled,
            at_ns: now_ns,
        };
        let violation = evidence.violation(&self.timeouts);
        if let Some(kind) = self.findings.followed_kind(facts.id)
            && violation.is_none_or(|it| it.kind > kind)
        {
            self.findings.resolve(facts.id);
        }
        if let Some(violation) = violation {
            let mut finding = new_finding(&evidence, violation, label_text(socket));
            // Most sockets have one holder: allocate for one.
            finding.holders = vec![holder];
            finding.tcp_state = is_tcp(facts).then(|| u16::try_from(sighting.state).unwrap_or(0));
            if let Some(payload) = payload_seen(facts, sighting)
                && !is_reset(facts, sighting)
            {
                finding.bytes_in = Some(payload.received);
                finding.bytes_out = Some(payload.acknowledged);
                finding.unread = Some(unread(facts, sighting));
                finding.unsent = Some(unsent(sighting));
            }
            self.findings.record(finding);
        }
        if let Some((kind, at_ns)) = evidence.deadline(&self.timeouts) {
            self.walked.waiting += 1;
            self.add_next_deadline(facts.id, kind, at_ns);
        }
    }

    /// Returns the facts of an adopted connection as those of an accepted one if a listener has its
    /// local port: no other connection can have it (`__inet_hash_connect` passes over ports that
    /// are bound).
    fn with_way(&mut self, facts: Facts, sighting: &Sighting) -> Facts {
        if facts.flags & fact::LISTENER != 0 && sighting.state == u32::from(TCP_LISTEN) {
            self.listening.insert(facts.local_port);
        }
        let is_way_known =
            facts.flags & (fact::ADOPTED | fact::DIALED) != fact::ADOPTED | fact::DIALED;
        if is_way_known || !is_tcp(&facts) || !self.listening.contains(&facts.local_port) {
            return facts;
        }
        Facts {
            flags: facts.flags & !fact::DIALED | fact::CHILD,
            ..facts
        }
    }

    fn observe_pile(&mut self, facts: &Facts, last_byte_ns: Option<u64>) {
        let Some(key) = PileKey::of(facts) else {
            return;
        };
        let lifetime = self.lifetimes.get(&facts.id);
        let payload = lifetime.and_then(|lifetime| lifetime.last_payload);
        let is_udp = facts.protocol == IPPROTO_UDP;
        if let Some(last_byte_ns) = last_byte_ns.or(is_udp.then_some(facts.born_ns)) {
            self.piles.observe(Sample {
                key,
                id: facts.id,
                born_ns: facts.born_ns,
                last_byte_ns,
                longest_silence_ns: lifetime.map_or(0, |it| it.longest_silence_ns),
                comm: facts.comm,
                is_used: is_udp || payload.is_some_and(|(seen, _)| seen != Payload::default()),
            });
        }
    }

    /// Adds a deadline for the next rule that the socket may break: the record that started the
    /// rule may be lost.
    fn add_next_deadline(&mut self, id: u64, kind: Kind, at_ns: u64) {
        let lifetime = self.lifetimes.get(&id);
        if lifetime.map(|lifetime| lifetime.deadline_ns) == Some(at_ns) {
            return;
        }
        let deadline = if kind == Kind::Unowned {
            Deadline::Unbound(id)
        } else {
            Deadline::Socket(id)
        };
        if self.deadlines.push(at_ns, deadline)
            && let Some(lifetime) = self.lifetimes.get_mut(&id)
        {
            lifetime.deadline_ns = at_ns;
        }
    }

    /// Marks a socket as met in this walk. Returns `true` if this walk has met it before.
    fn meet(&mut self, facts: &Facts) -> bool {
        let is_new = !self.lifetimes.contains_key(&facts.id);
        if facts.bound_ns != 0 {
            self.set_bound(&facts.into(), (facts.owner, facts.role, facts.bound_ns));
        }
        let lifetime = self
            .lifetimes
            .entry(facts.id)
            .or_insert_with(|| Lifetime::new(&facts.into()));
        // Those that walks find have no record.
        lifetime.unannounced |= is_new && facts.flags & fact::ADOPTED == 0;
        if is_new && facts.flags & fact::FOREIGN != 0 {
            self.counts.witnessed_only += 1;
        }
        lifetime.held = true;
        if lifetime.walk == self.walk {
            return true;
        }
        lifetime.walk = self.walk;
        lifetime.accepted =
            facts.flags & (fact::ADOPTED | fact::CHILD) == fact::ADOPTED | fact::CHILD;
        if !lifetime.unhooked {
            self.walked.open += 1;
        }
        self.walked.unwatched += u64::from(facts.flags & fact::UNWATCHED != 0);
        self.connections.count_open(facts);
        false
    }

    /// Returns when the byte counters last changed, for sockets that have any.
    fn observe_bytes(&mut self, facts: &Facts, sighting: &Sighting, now_ns: u64) -> Option<u64> {
        let seen = payload_seen(facts, sighting)?;
        let lifetime = self.lifetimes.get_mut(&facts.id)?;
        match lifetime.last_payload {
            Some((last, since_ns)) if last == seen => Some(since_ns),
            Some((_, since_ns)) => {
                let silence_ns = now_ns.saturating_sub(since_ns);
                lifetime.longest_silence_ns = lifetime.longest_silence_ns.max(silence_ns);
                lifetime.last_payload = Some((seen, now_ns));
                Some(now_ns)
            }
            None => {
                let since_ns = if seen == Payload::default() {
                    facts.born_ns.max(facts.bound_ns)
                } else {
                    now_ns
                };
                lifetime.last_payload = Some((seen, since_ns));
                Some(since_ns)
            }
        }
    }

    /// Ends a walk, after the events that came during it were applied.
    ///
    /// When records were lost before it (`lossy`), sockets that the walk did not meet are taken for
    /// released. Otherwise they are a disagreement.
    pub fn finish_walk(&mut self, lossy: bool) -> Walk {
        let mut gone = Vec::new();
        for (id, lifetime) in &mut self.lifetimes {
            if lifetime.walk == self.walk {
                if lifetime.unannounced && !lifetime.unhooked {
                    lifetime.unannounced = false;
                    self.walked.only_in_kernel += u64::from(!lossy);
                }
                continue;
            }
            if lifetime.born_ns >= self.walk_began_ns {
                continue;
            }
            match (lifetime.held, lossy || lifetime.unhooked) {
                (true, true) => gone.push(*id),
                (true, false) => self.walked.only_in_ledger += 1,
                // Still in a backlog, or died there.
                (false, _) if lifetime.dead || lossy => gone.push(*id),
                (false, _) => {}
            }
        }
        for id in gone {
            self.drop_lifetime(id);
            // Its release was lost, or no hook runs for it.
            self.findings.resolve(id);
        }
        if lossy {
            self.released_before_bind.clear();
        }
        self.connections.finish_walk();
        if self.findings.is_followed() {
            // Nobody asks at the end what they had: there is none.
            self.piles.forget_exited();
        }
        let change = self.piles.finish_walk(
            self.walk_began_ns,
            self.timeouts.grace_ns,
            &self.timeouts.piles,
        );
        for id in change.cleared {
            self.findings.withdraw(id, Kind::PileUp);
        }
        self.walked.has_piled_up = change.has_grown;
        std::mem::take(&mut self.walked)
    }
}
