//! A simulated kernel.

use std::collections::BTreeMap;

use tracer_abi::annotation::{Owner, Role};
use tracer_abi::facts::{Ends, Facts, Socket, fact};
use tracer_abi::record::{
    self, BoundEvent, BriefEvent, EndedEvent, Head, OverstayEvent, ReleaseEvent,
};
use tracer_abi::sighting::{KNOWN, Sighting};

use super::super::fixtures::{NO_ENDS, facts, sighting};
use super::super::{Ledger, Walk};
use super::GRACE_NS;
use crate::event::{Descriptor, Event};

pub(super) fn head(kind: u32, at_ns: u64) -> Head {
    Head {
        kind,
        flags: 0,
        at_ns,
    }
}

fn overstay(kind: u32, at_ns: u64, facts: &Facts, ends: Ends) -> OverstayEvent {
    OverstayEvent {
        head: head(kind, at_ns),
        tgid: 42,
        reserved: 0,
        comm: [0; 16],
        ends,
        socket: Socket {
            facts: *facts,
            label: [0; 64],
        },
    }
}

pub(super) fn stream(n: u64) -> Owner {
    Owner {
        session: 7,
        stream: n,
    }
}

/// A simulated kernel: it stamps records as the eBPF programs do.
#[derive(Default)]
pub(super) struct Kernel {
    pub(super) open: BTreeMap<u64, Facts>,
    pub(super) ends: BTreeMap<Owner, u64>,
    pub(super) late: u64,
    pub(super) now_ns: u64,
    pub(super) next_id: u64,
}

impl Kernel {
    pub(super) fn ends_of(&self, facts: &Facts) -> Ends {
        if facts.bound_ns == 0 {
            return NO_ENDS;
        }
        let of = |owner| self.ends.get(&owner).copied().unwrap_or(0);
        Ends {
            own_ns: of(facts.owner),
            session_ns: if facts.owner.stream == 0 {
                0
            } else {
                of(facts.owner.whole_session())
            },
        }
    }

    fn is_late(&self, facts: &Facts) -> bool {
        let ends = self.ends_of(facts);
        [ends.own_ns, ends.session_ns]
            .into_iter()
            .filter(|end_ns| *end_ns != 0)
            .any(|end_ns| self.now_ns - end_ns.max(facts.bound_ns) > GRACE_NS)
    }

    pub(super) fn create(&mut self) -> Event {
        self.next_id += 1;
        let mut facts = facts(self.next_id);
        facts.born_ns = self.now_ns;
        facts.held_ns = self.now_ns;
        self.open.insert(facts.id, facts);
        Event::Created(BriefEvent {
            head: head(record::CREATED, self.now_ns),
            brief: (&facts).into(),
        })
    }

    /// Returns the record of the BIND, and before it the record of the violation, if there is one.
    pub(super) fn bind(&mut self, id: u64, owner: Owner) -> Option<(Option<Event>, Event)> {
        let former = *self.open.get(&id)?;
        let is_late = self.is_late(&former);
        self.late += u64::from(is_late);
        let renewed = overstay(record::RENEWED, self.now_ns, &former, self.ends_of(&former));
        let facts = self.open.get_mut(&id)?;
        facts.owner = owner;
        facts.role = Role::Stream as u16;
        facts.bound_ns = self.now_ns;
        facts.flags |= fact::BOUND;
        let bound = Event::Bound(BoundEvent {
            head: head(record::BOUND, self.now_ns),
            brief: (&*facts).into(),
            owner,
            tgid: 42,
            role: facts.role,
            state: facts.state,
        });
        Some((is_late.then_some(Event::Renewed(renewed)), bound))
    }

    pub(super) fn end(&mut self, owner: Owner) -> Option<Event> {
        if self.ends.contains_key(&owner) {
            return None;
        }
        self.ends.insert(owner, self.now_ns);
        Some(Event::Ended(EndedEvent {
            head: head(record::ENDED, self.now_ns),
            owner,
            tgid: 42,
            reason: 0,
        }))
    }

    pub(super) fn release(&mut self, id: u64) -> Option<Event> {
        let facts = self.open.remove(&id)?;
        let ends = self.ends_of(&facts);
        if self.is_late(&facts) {
            self.late += 1;
            let overstayed = overstay(record::OVERSTAYED, self.now_ns, &facts, ends);
            return Some(Event::Overstayed(overstayed));
        }
        let over_ns = [ends.own_ns, ends.session_ns]
            .into_iter()
            .find(|end_ns| *end_ns != 0);
        Some(Event::Released(ReleaseEvent {
            head: head(record::RELEASED, self.now_ns),
            brief: (&facts).into(),
            over_ns: over_ns.map_or(0, |end_ns| end_ns.max(facts.bound_ns)),
            remote: facts.remote,
            remote_port: facts.remote_port,
            local_port: facts.local_port,
            reserved: 0,
        }))
    }

    pub(super) fn walk(&self, ledger: &mut Ledger, lossy: bool) -> Walk {
        ledger.begin_walk(self.now_ns);
        for facts in self.open.values() {
            ledger.observe(&self.observe(facts, 3), self.now_ns);
        }
        ledger.finish_walk(lossy)
    }

    pub(super) fn observe(&self, facts: &Facts, fd: u32) -> Descriptor {
        Descriptor {
            sighting: Sighting {
                fd,
                flags: KNOWN,
                family: facts.family,
                protocol: facts.protocol,
                ends: self.ends_of(facts),
                ..sighting()
            },
            socket: Some(Socket {
                facts: *facts,
                label: [0; 64],
            }),
        }
    }
}
