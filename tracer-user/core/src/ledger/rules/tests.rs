//! The rules, one by one.

use proptest::prelude::*;
use tracer_abi::annotation::Role;
use tracer_abi::facts::{Ends, Facts, fact};
use tracer_abi::record::{ANNOTATES, BY_EXIT};

use super::super::fixtures::{NO_ENDS, facts};
use super::super::piles::PileLimits;
use super::{Evidence, Sampled, Timeouts};
use crate::verdict::Kind;

const TIMEOUTS: Timeouts = Timeouts {
    grace_ns: 10,
    stuck_ns: 500,
    idle_ns: 1000,
    piles: PileLimits {
        after_ns: 1000,
        growth: 8,
    },
};

fn violation(facts: &Facts, ends: Ends, flags: u32, at_ns: u64) -> Option<(Kind, u64)> {
    let evidence = Evidence {
        facts,
        ends: &ends,
        flags,
        sampled: Sampled::default(),
        at_ns,
    };
    evidence.violation(&TIMEOUTS).map(|o| (o.kind, o.since_ns))
}

fn last_byte(at_ns: u64) -> Sampled {
    Sampled {
        last_byte_ns: Some(at_ns),
        ..Sampled::default()
    }
}

#[test]
fn grace_is_the_last_innocent_moment() {
    let mut facts = facts(1);
    facts.bound_ns = 200;
    facts.role = Role::Stream as u16;
    let ends = Ends {
        own_ns: 300,
        session_ns: 0,
    };
    assert_eq!(violation(&facts, ends, 0, 310), None);
    assert_eq!(
        violation(&facts, ends, 0, 311),
        Some((Kind::OutlivedRequest, 300))
    );
}

#[test]
fn a_bind_after_the_end_starts_its_own_grace() {
    let mut facts = facts(1);
    facts.bound_ns = 500;
    let ends = Ends {
        own_ns: 300,
        session_ns: 300,
    };
    assert_eq!(violation(&facts, ends, 0, 510), None);
    assert_eq!(
        violation(&facts, ends, 0, 511),
        Some((Kind::OutlivedRequest, 500))
    );
}

#[test]
fn the_first_rule_that_holds_wins() {
    let mut facts = facts(1);
    facts.bound_ns = 110;
    facts.peer_done_ns = 120;
    facts.dead_ns = 130;
    let session = Ends {
        own_ns: 0,
        session_ns: 140,
    };
    assert_eq!(
        violation(&facts, NO_ENDS, BY_EXIT, 125),
        Some((Kind::OpenAtExit, 125))
    );
    assert_eq!(
        violation(&facts, NO_ENDS, BY_EXIT, 135),
        Some((Kind::PeerClosed, 120))
    );
    assert_eq!(
        violation(&facts, session, 0, 145),
        Some((Kind::PeerClosed, 120))
    );
    assert_eq!(
        violation(&facts, session, 0, 151),
        Some((Kind::SessionRemnant, 140))
    );
    facts.peer_done_ns = 0;
    assert_eq!(
        violation(&facts, NO_ENDS, 0, 141),
        Some((Kind::DeadSocket, 130))
    );
}

#[test]
fn a_listener_may_be_open_at_exit() {
    let mut facts = facts(1);
    assert!(violation(&facts, NO_ENDS, BY_EXIT, 105).is_some());
    facts.flags |= fact::LISTENER;
    assert_eq!(violation(&facts, NO_ENDS, BY_EXIT, 105), None);
    facts.flags &= !fact::LISTENER;
    facts.bound_ns = 105;
    facts.role = Role::Listener as u16;
    assert_eq!(violation(&facts, NO_ENDS, BY_EXIT, 105), None);
}

#[test]
fn what_happened_in_the_backlog_counts_from_the_accept() {
    let mut facts = facts(1);
    facts.peer_done_ns = 120;
    facts.dead_ns = 130;
    facts.held_ns = 500;
    assert_eq!(violation(&facts, NO_ENDS, 0, 510), None);
    assert_eq!(
        violation(&facts, NO_ENDS, 0, 511),
        Some((Kind::PeerClosed, 500))
    );
}

#[test]
fn only_a_process_that_annotates_owes_an_owner() {
    let mut facts = facts(1);
    assert_eq!(violation(&facts, NO_ENDS, 0, 999), None);
    assert_eq!(
        violation(&facts, NO_ENDS, ANNOTATES, 111),
        Some((Kind::Unowned, 100))
    );
    assert_eq!(violation(&facts, NO_ENDS, ANNOTATES, 110), None);
    facts.protocol = 17;
    assert_eq!(violation(&facts, NO_ENDS, ANNOTATES, 999), None);
}

#[test]
fn a_pooled_connection_is_judged_by_idleness_only() {
    let mut facts = facts(1);
    facts.bound_ns = 110;
    facts.role = Role::Pool as u16;
    facts.peer_done_ns = 120;
    facts.dead_ns = 120;
    let ends = Ends {
        own_ns: 115,
        session_ns: 115,
    };
    assert_eq!(violation(&facts, ends, BY_EXIT | ANNOTATES, 900), None);
    let idle = Evidence {
        facts: &facts,
        ends: &ends,
        flags: 0,
        sampled: last_byte(120),
        at_ns: 1121,
    };
    assert_eq!(idle.violation(&TIMEOUTS).map(|o| o.kind), Some(Kind::Idle));
}

#[test]
fn what_is_stuck_is_told_before_what_is_idle() {
    let facts = facts(1);
    let mut evidence = Evidence {
        facts: &facts,
        ends: &NO_ENDS,
        flags: 0,
        sampled: last_byte(120),
        at_ns: 1121,
    };
    assert_eq!(
        evidence.violation(&TIMEOUTS).map(|o| o.kind),
        Some(Kind::Idle)
    );
    evidence.sampled.stalled_ns = Some(621);
    assert_eq!(
        evidence.violation(&TIMEOUTS).map(|o| o.kind),
        Some(Kind::Idle)
    );
    evidence.sampled.stalled_ns = Some(620);
    let violation = evidence.violation(&TIMEOUTS);
    assert_eq!(
        violation.map(|o| (o.kind, o.since_ns)),
        Some((Kind::Stuck, 620))
    );
}

#[test]
fn the_next_deadline_is_that_of_the_rule_that_is_broken_first() {
    let mut facts = facts(1);
    facts.bound_ns = 110;
    facts.peer_done_ns = 125;
    let ends = Ends {
        own_ns: 120,
        session_ns: 128,
    };
    let at = |at_ns| {
        let evidence = Evidence {
            facts: &facts,
            ends: &ends,
            flags: 0,
            sampled: last_byte(100),
            at_ns,
        };
        evidence.deadline(&TIMEOUTS)
    };
    assert_eq!(at(129), Some((Kind::OutlivedRequest, 130)));
    assert_eq!(at(131), Some((Kind::PeerClosed, 135)));
    assert_eq!(at(138), Some((Kind::SessionRemnant, 138)));
    assert_eq!(at(139), None, "idleness has none");
}

proptest! {
    #[test]
    fn an_offence_always_began_before_the_judgement(
        times in proptest::array::uniform6(0_u64..1 << 40),
        flags in any::<u32>(),
        role in 0_u16..5,
        at_ns in 0_u64..1 << 41,
    ) {
        let [born, bound, peer, dead, own, session] = times;
        let mut facts = facts(1);
        facts.born_ns = born;
        facts.held_ns = born;
        facts.bound_ns = bound;
        facts.peer_done_ns = peer;
        facts.dead_ns = dead;
        facts.role = role;
        let ends = Ends { own_ns: own, session_ns: session };
        let evidence = Evidence { facts: &facts, ends: &ends, flags, sampled: Sampled::default(), at_ns };
        if let Some(violation) = evidence.violation(&TIMEOUTS) {
            prop_assert!(violation.since_ns <= at_ns);
        }
    }
}
