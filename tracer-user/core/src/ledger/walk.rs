//! The witness's walks: every open descriptor is met, and the ledger is set right by them.

use tracer_abi::facts::Facts;
use tracer_abi::record::ANNOTATES;
use tracer_abi::sighting::Sighting;

use super::bytes::{Payload, is_set_back, payload_seen, unread, unsent};
use super::findings::{HOLDERS_MAX, new_finding};
use super::lifetime::{Evidence, TCP_CLOSE, is_tcp};
use super::{Deadline, Ledger, Lifetime};
use crate::event::{Descriptor, label_text};
use crate::verdict::{Holder, Kind};

/// What a walk of the witness added up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Sockets met, of the families that have create and release hooks.
    pub open: u64,
    /// Sockets that the ledger has open and the walk did not meet.
    pub only_in_ledger: u64,
    /// Sockets that the walk met and no record told of.
    pub only_in_kernel: u64,
    /// Descriptors of the target's processes for internet sockets that are not of this audit, as far as they are listed.
    pub foreign_sockets: Vec<ForeignSocket>,
}

/// A descriptor for an internet socket that is not of this audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignSocket {
    /// Who has it.
    pub holder: Holder,
    /// The socket's local port; 0 while it has none.
    pub local_port: u16,
}

/// One that was told to connect is dead only where TCP says so: it may wait for its first bytes (TCP_FASTOPEN_CONNECT).
fn as_seen(facts: &Facts, sighting: &Sighting) -> Facts {
    let is_closed = sighting.state == u32::from(TCP_CLOSE);
    Facts {
        dead_ns: if is_closed { facts.dead_ns } else { 0 },
        ..*facts
    }
}

impl Ledger {
    /// Begins a walk of the witness at `now_ns`.
    pub fn begin_walk(&mut self, now_ns: u64) {
        self.walk = self.walk.wrapping_add(1);
        self.walk_began_ns = now_ns;
        self.walked = Walk::default();
        self.peers.recount();
    }

    /// Takes an open descriptor of a target process for an internet socket that is not of this audit.
    pub fn observe_foreign(&mut self, foreign: ForeignSocket) {
        if self.walked.foreign_sockets.len() < HOLDERS_MAX {
            self.walked.foreign_sockets.push(foreign);
        }
    }

    /// Takes one open descriptor of a socket of the audit, seen at `now_ns`.
    pub fn observe(&mut self, descriptor: &Descriptor, now_ns: u64) {
        let (Some(socket), sighting) = (&descriptor.socket, &descriptor.sighting) else {
            return;
        };
        let facts = &as_seen(&socket.facts, sighting);
        let holder = Holder {
            pid: sighting.tgid,
            fd: sighting.fd,
            comm: None,
        };
        if self.meet(facts) {
            self.findings
                .add_holder(facts.id, self.walk_began_ns, holder);
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
        if let Some(violation) = evidence.violation(&self.timeouts) {
            let mut finding = new_finding(&evidence, violation, label_text(socket));
            // Most sockets have one holder: no room is kept for more.
            finding.holders = vec![holder];
            finding.tcp_state = is_tcp(facts).then(|| u16::try_from(sighting.state).unwrap_or(0));
            if let Some(payload) = payload_seen(facts, sighting)
                && !is_set_back(facts, sighting)
            {
                finding.bytes_in = Some(payload.received);
                finding.bytes_out = Some(payload.acknowledged);
                finding.unread = Some(unread(facts, sighting));
                finding.unsent = Some(unsent(sighting));
            }
            self.findings.record(finding);
        }
        if let Some((kind, at_ns)) = evidence.deadline(&self.timeouts) {
            self.look_again(facts.id, kind, at_ns);
        }
    }

    /// Has the witness look when a rule that runs against a socket is broken: the record that told of its start may be lost.
    fn look_again(&mut self, id: u64, kind: Kind, at_ns: u64) {
        let kept = self.lifetimes.get(&id).map(|known| known.deadline_ns);
        if kept == Some(at_ns) {
            return;
        }
        let due = if kind == Kind::Unowned {
            Deadline::Unbound(id)
        } else {
            Deadline::Socket(id)
        };
        if self.due_at(at_ns, due)
            && let Some(known) = self.lifetimes.get_mut(&id)
        {
            known.deadline_ns = at_ns;
        }
    }

    /// Marks a socket as met in this walk; `true` when it was met in it before.
    fn meet(&mut self, facts: &Facts) -> bool {
        let unknown = !self.lifetimes.contains_key(&facts.id);
        if facts.bound_ns != 0 {
            self.set_bound(&facts.into(), (facts.owner, facts.role, facts.bound_ns));
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

    /// Ends a walk, after the events that came during it were applied. When records were lost before it (`lossy`), sockets
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
        if lossy {
            self.gone_early.clear();
        }
        std::mem::take(&mut self.walked)
    }
}
