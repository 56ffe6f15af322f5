//! The kernel's events: each updates the ledger.

use tracer_abi::annotation::Role;
use tracer_abi::facts::IPPROTO_TCP;
use tracer_abi::limits::ANNOTATORS_MAX;
use tracer_abi::record::{
    BY_EXIT, BoundEvent, BriefEvent, EndedEvent, LeftEvent, OverstayEvent, ReleaseEvent,
};

use super::connections::Way;
use super::deadlines::Deadline;
use super::findings::new_finding;
use super::lifetime::Lifetime;
use super::rules::{Evidence, Sampled};
use super::state::Ledger;
use crate::event::{Event, comm_text, label_text};
use crate::verdict::Kind;

/// How many processes that left the audited cgroup are named. The kernel counts all of them.
const LEFT_MAX: usize = 64;

impl Ledger {
    /// Applies one record of the rings.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Created(of) | Event::Arrived(of) => self.recv_born(of),
            Event::Bound(of) => self.recv_bound(of),
            Event::Ended(event) => self.recv_ended(event),
            Event::PeerDone(of) => {
                self.add_deadline(of.head.at_ns, Deadline::Socket(of.brief.id));
            }
            Event::Died(of) => self.recv_died(of),
            Event::Released(of) => self.recv_released(of),
            Event::Overstayed(of) => self.recv_overstayed(of),
            Event::Renewed(of) => self.recv_renewed(of),
            Event::Left(event) => self.recv_left(event),
        }
    }

    fn recv_born(&mut self, of: &BriefEvent) {
        let brief = &of.brief;
        let lifetime = self
            .lifetimes
            .entry(brief.id)
            .or_insert_with(|| Lifetime::new(brief));
        lifetime.unannounced = false;
        let is_unbound = lifetime.bound.is_none();
        if brief.protocol == IPPROTO_TCP && is_unbound && !self.annotators.is_empty() {
            self.add_deadline(of.head.at_ns, Deadline::Unbound(brief.id));
        }
    }

    fn recv_died(&mut self, of: &BriefEvent) {
        if let Some(lifetime) = self.lifetimes.get_mut(&of.brief.id) {
            lifetime.dead = true;
        }
        self.add_deadline(of.head.at_ns, Deadline::Socket(of.brief.id));
    }

    fn recv_bound(&mut self, of: &BoundEvent) {
        let at_ns = of.head.at_ns;
        if self.annotators.len() < ANNOTATORS_MAX as usize && self.annotators.insert(of.tgid) {
            self.add_deadline(at_ns, Deadline::Annotator);
        }
        self.count_bind(of.brief.id, of.role);
        let lifetime = self.set_bound(&of.brief, (of.owner, of.role, at_ns));
        lifetime.unannounced = false;
        if of.state != 0 {
            // The clock of what TCP did while the socket was pooled starts now.
            self.add_deadline(at_ns, Deadline::Socket(of.brief.id));
        }
        if self.owners.has_ended(of.owner) {
            self.add_deadline(at_ns, Deadline::Owner(of.owner));
        }
        if self.released_before_bind.remove(&of.brief.id) {
            self.drop_lifetime(of.brief.id);
        }
    }

    /// A socket had broken a rule when it was reused: bound again, connected again, listening
    /// again.
    fn recv_renewed(&mut self, of: &OverstayEvent) {
        let evidence = Evidence {
            facts: &of.socket.facts,
            ends: &of.ends,
            flags: of.head.flags,
            sampled: Sampled::default(),
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
        let previous = self
            .lifetimes
            .get(&id)
            .and_then(|lifetime| lifetime.bound)
            .map(|(_, role, _)| role);
        if previous == Some(role) {
            return;
        }
        match Role::from_u16(role) {
            Some(Role::Listener) => self.counts.listeners += 1,
            Some(Role::Link) => self.counts.links += 1,
            Some(Role::Control | Role::Stream | Role::Pool) | None => {}
        }
    }

    fn recv_ended(&mut self, event: &EndedEvent) {
        let owner = event.owner;
        self.owners.end(owner);
        if owner.stream != 0 {
            self.counts.streams_ended += 1;
        }
        self.add_deadline(event.head.at_ns, Deadline::Owner(owner));
    }

    fn recv_released(&mut self, of: &ReleaseEvent) {
        let (brief, at_ns) = (&of.brief, of.head.at_ns);
        let accepted = self.drop_lifetime(brief.id).is_some_and(|it| it.accepted);
        self.count_released(Way::of_release(of), accepted);
        if of.over_ns != 0 {
            self.measure_outlive(of.over_ns, at_ns);
        }
        self.piles
            .recv_released(brief.id, at_ns, &self.timeouts.piles);
        self.findings.mark_released(brief.id, at_ns);
    }

    fn count_released(&mut self, way: Option<Way>, accepted: bool) {
        let Some(way) = way else { return };
        let way = if accepted { way.as_accepted() } else { way };
        self.connections.count_released(way);
    }

    fn measure_outlive(&mut self, over_ns: u64, at_ns: u64) {
        let outlive_ns = at_ns.saturating_sub(over_ns);
        self.outlive.saturating_record(outlive_ns.max(1));
    }

    fn recv_overstayed(&mut self, of: &OverstayEvent) {
        let (at_ns, facts) = (of.head.at_ns, &of.socket.facts);
        let lifetime = self.drop_lifetime(facts.id);
        let accepted = lifetime.as_ref().is_some_and(|it| it.accepted);
        let last_bind_ns = lifetime
            .and_then(|lifetime| lifetime.bound)
            .map_or(0, |(_, _, at_ns)| at_ns);
        if facts.bound_ns != last_bind_ns {
            self.released_before_bind.insert(facts.id);
        }
        self.count_released(Way::of(facts), accepted);
        if of.head.flags & BY_EXIT != 0 && of.tgid == facts.opener {
            self.piles.opener_exited(facts.opener, at_ns);
        }
        let evidence = Evidence {
            facts,
            ends: &of.ends,
            flags: of.head.flags,
            sampled: Sampled::default(),
            at_ns,
        };
        if let Some(over_ns) = evidence.request_over_ns() {
            self.measure_outlive(over_ns, at_ns);
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
            self.findings.mark_released(facts.id, at_ns);
        }
    }

    fn recv_left(&mut self, event: &LeftEvent) {
        if self.left.len() < LEFT_MAX {
            self.left.push((event.tgid, comm_text(&event.comm)));
        }
    }
}
