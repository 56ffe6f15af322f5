//! The ledger against a simulated kernel: whatever records are lost, the verdict must not change.

mod kernel;

use std::collections::{BTreeMap, BTreeSet};

use kernel::{Kernel, head, stream};
use proptest::prelude::*;
use tracer_abi::facts::{Facts, fact};
use tracer_abi::record::{self, BriefEvent};

use super::deadlines::{DEADLINES_MAX, Deadline};
use super::fixtures::facts;
use super::tcp::TCP_CLOSE;
use super::{Ledger, Timeouts, Walk};
use crate::event::Event;
use crate::verdict::{Kind, Level, Levels};

const GRACE_NS: u64 = 100;

fn ledger() -> Ledger {
    let timeouts = Timeouts {
        grace_ns: GRACE_NS,
        ..Timeouts::NEVER
    };
    Ledger::new(timeouts, Levels::default())
}

#[derive(Clone, Debug)]
enum Step {
    Create,
    Bind(u64, u64),
    End(u64),
    Release(u64),
    Wait(u64),
    Walk,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Create),
        4 => (1_u64..12, 1_u64..6).prop_map(|(id, owner)| Step::Bind(id, owner)),
        3 => (0_u64..6).prop_map(Step::End),
        3 => (1_u64..12).prop_map(Step::Release),
        3 => (1_u64..150).prop_map(Step::Wait),
        1 => Just(Step::Walk),
    ]
}

/// Runs the steps and returns the findings of sockets that are open at the end, whether counters
/// and ledger agree on late releases, and the last walk.
fn simulate(
    steps: &[Step],
    mut is_lost: impl FnMut() -> bool,
) -> (BTreeMap<u64, Kind>, bool, Walk) {
    let (mut kernel, mut ledger) = (Kernel::default(), ledger());
    kernel.now_ns = 1;
    let mut lossy = false;
    for step in steps {
        let events: Vec<Event> = match step {
            Step::Create => vec![kernel.create()],
            Step::Bind(id, owner) => {
                let bound = kernel.bind(*id, stream(*owner));
                bound.map_or_else(Vec::new, |(late, bound)| {
                    late.into_iter().chain([bound]).collect()
                })
            }
            Step::End(owner) => kernel.end(stream(*owner)).into_iter().collect(),
            Step::Release(id) => kernel.release(*id).into_iter().collect(),
            Step::Wait(ns) => {
                kernel.now_ns += ns;
                Vec::new()
            }
            Step::Walk => {
                kernel.walk(&mut ledger, std::mem::take(&mut lossy));
                Vec::new()
            }
        };
        // The clock never stands still between two calls.
        kernel.now_ns += 1;
        for event in events {
            if is_lost() {
                lossy = true;
            } else {
                ledger.apply(&event);
            }
        }
    }
    let walk = kernel.walk(&mut ledger, lossy);
    assert_eq!(walk.open, kernel.open.len() as u64);
    assert_eq!(
        ledger.open(),
        kernel.open.len(),
        "the ledger is right after a walk"
    );
    let open: BTreeSet<u64> = kernel.open.keys().copied().collect();
    let findings = ledger
        .findings()
        .sorted()
        .into_iter()
        .filter(|finding| open.contains(&finding.id))
        .map(|finding| (finding.id, finding.kind))
        .collect();
    (findings, kernel.late == ledger.counts().late, walk)
}

/// Few under miri, which takes long for each.
const STEPS_MAX: usize = if cfg!(miri) { 12 } else { 80 };

proptest! {
    /// Without walks in between, sockets that are open at the end get the same findings whatever
    /// was lost. Late releases that were lost show in the kernel's counter.
    #[test]
    fn losses_never_change_the_verdict(
        steps in proptest::collection::vec(step(), 1..STEPS_MAX),
        losses in proptest::collection::vec(any::<bool>(), STEPS_MAX),
    ) {
        let steps: Vec<Step> = steps.into_iter().filter(|step| !matches!(step, Step::Walk)).collect();
        let (whole, late_agrees, walk) = simulate(&steps, || false);
        prop_assert!(late_agrees, "nothing is lost, so every late release is known");
        prop_assert_eq!((walk.only_in_ledger, walk.only_in_kernel), (0, 0));
        let mut losses = losses.into_iter();
        let (lossy, late_agrees, walk) = simulate(&steps, || losses.next().unwrap_or(false));
        prop_assert_eq!((walk.only_in_ledger, walk.only_in_kernel), (0, 0));
        // A socket that was bound again too late is known from that record only. Without it the
        // counters disagree.
        prop_assert!(lossy == whole || !late_agrees);
        prop_assert!(lossy.keys().all(|id| whole.contains_key(id)));
    }

    /// With losses, ledger and witness agree after each walk.
    #[test]
    fn every_walk_sets_the_ledger_right(
        steps in proptest::collection::vec(step(), 1..STEPS_MAX),
        losses in proptest::collection::vec(any::<bool>(), STEPS_MAX),
    ) {
        let mut losses = losses.into_iter();
        let (_, _, walk) = simulate(&steps, || losses.next().unwrap_or(false));
        prop_assert_eq!((walk.only_in_ledger, walk.only_in_kernel), (0, 0));
    }
}

#[test]
fn the_witness_names_every_holder_and_the_release_keeps_them() {
    let (mut kernel, mut ledger) = (Kernel::default(), ledger());
    kernel.now_ns = 1000;
    ledger.apply(&kernel.create());
    ledger.apply(&kernel.bind(1, stream(1)).unwrap().1);
    ledger.apply(&kernel.end(stream(1)).unwrap());
    kernel.now_ns += GRACE_NS;
    assert!(!ledger.take_overdue(kernel.now_ns), "grace is not over");
    kernel.now_ns += 1;
    assert!(ledger.take_overdue(kernel.now_ns));
    ledger.begin_walk(kernel.now_ns);
    let facts = kernel.open[&1];
    ledger.observe(&kernel.observe(&facts, 3), kernel.now_ns);
    ledger.observe(&kernel.observe(&facts, 9), kernel.now_ns);
    ledger.finish_walk(false);
    ledger.apply(&kernel.release(1).unwrap());
    let findings = ledger.findings().sorted();
    let [finding] = findings.as_slice() else {
        panic!("one finding was expected: {findings:?}");
    };
    assert_eq!(finding.kind, Kind::OutlivedRequest);
    let held: Vec<u32> = finding.holders.iter().map(|holder| holder.fd).collect();
    assert_eq!(held, [3, 9]);
    assert_eq!(finding.released_ns, Some(kernel.now_ns));
    assert_eq!(ledger.open(), 0);
}

#[test]
fn a_bind_that_is_told_after_the_release_keeps_nothing_open() {
    let (mut kernel, mut ledger) = (Kernel::default(), ledger());
    kernel.now_ns = 1000;
    ledger.apply(&kernel.create());
    let (_, bound) = kernel.bind(1, stream(1)).unwrap();
    ledger.apply(&kernel.end(stream(1)).unwrap());
    kernel.now_ns += GRACE_NS + 1;
    ledger.apply(&kernel.release(1).unwrap());
    ledger.apply(&bound);
    assert_eq!((ledger.open(), ledger.counts().streams_bound), (0, 1));
    assert!(ledger.released_before_bind.is_empty());
    ledger.apply(&kernel.create());
    let _lost = kernel.bind(2, stream(1));
    kernel.now_ns += GRACE_NS + 1;
    ledger.apply(&kernel.release(2).unwrap());
    kernel.walk(&mut ledger, true);
    assert!(ledger.released_before_bind.is_empty(), "its BIND was lost");
}

#[test]
fn a_connection_that_died_in_the_pool_is_looked_at_a_grace_after_it_leaves_it() {
    let (mut kernel, mut ledger) = (Kernel::default(), ledger());
    kernel.now_ns = 1000;
    ledger.apply(&kernel.create());
    kernel.open.get_mut(&1).unwrap().state = TCP_CLOSE;
    ledger.apply(&kernel.bind(1, stream(1)).unwrap().1);
    kernel.now_ns += GRACE_NS;
    assert!(!ledger.take_overdue(kernel.now_ns), "grace is not over");
    kernel.now_ns += 1;
    assert!(ledger.take_overdue(kernel.now_ns));
}

#[test]
fn a_socket_released_in_time_asks_for_no_walk() {
    let (mut kernel, mut ledger) = (Kernel::default(), ledger());
    kernel.now_ns = 1000;
    ledger.apply(&kernel.create());
    ledger.apply(&kernel.bind(1, stream(1)).unwrap().1);
    ledger.apply(&kernel.end(stream(1)).unwrap());
    ledger.apply(&kernel.release(1).unwrap());
    assert!(!ledger.take_overdue(u64::MAX));
    assert_eq!(ledger.outlive().len(), 1);
}

#[test]
fn a_child_in_a_backlog_is_not_open_and_goes_when_it_dies() {
    let mut ledger = ledger();
    let mut child = facts(1);
    child.flags = fact::CHILD;
    let of = |kind, facts: Facts| BriefEvent {
        head: head(kind, 200),
        brief: (&facts).into(),
    };
    ledger.apply(&Event::Arrived(of(record::ARRIVED, child)));
    assert_eq!(ledger.open(), 0);
    ledger.begin_walk(300);
    assert_eq!(ledger.finish_walk(false), Walk::default());
    ledger.apply(&Event::Died(of(record::DIED, child)));
    assert!(ledger.take_overdue(201 + GRACE_NS));
    ledger.begin_walk(400);
    assert_eq!(ledger.finish_walk(false), Walk::default());
    assert!(ledger.lifetimes.is_empty());
}

#[test]
fn without_losses_ledger_and_witness_must_agree() {
    let (mut kernel, mut ledger) = (Kernel::default(), ledger());
    kernel.now_ns = 1000;
    ledger.apply(&kernel.create());
    let _untold = kernel.create();
    kernel.now_ns += 1;
    let walk = kernel.walk(&mut ledger, false);
    assert_eq!((walk.open, walk.only_in_kernel), (2, 1));
    kernel.open.clear();
    kernel.now_ns += 1;
    let walk = kernel.walk(&mut ledger, false);
    assert_eq!((walk.open, walk.only_in_ledger), (0, 2));
}

#[test]
#[cfg_attr(miri, ignore = "as many deadlines as the bound take it too long")]
fn an_allowed_kind_is_left_out_and_memory_for_deadlines_is_bounded() {
    let timeouts = Timeouts {
        grace_ns: GRACE_NS,
        ..Timeouts::NEVER
    };
    let mut levels = Levels::default();
    levels.set(Kind::OutlivedRequest, Level::Allow);
    let mut ledger = Ledger::new(timeouts, levels);
    let mut kernel = Kernel {
        now_ns: 1,
        ..Kernel::default()
    };
    ledger.apply(&kernel.create());
    ledger.apply(&kernel.bind(1, stream(1)).unwrap().1);
    for n in 0..DEADLINES_MAX as u64 + 10 {
        ledger.apply(&kernel.end(stream(n + 1)).unwrap());
    }
    assert_eq!(ledger.deadlines.len(), DEADLINES_MAX);
    kernel.now_ns += GRACE_NS + 2;
    assert!(ledger.take_overdue(kernel.now_ns));
    kernel.walk(&mut ledger, false);
    assert!(ledger.findings().sorted().is_empty());
}

#[test]
fn a_walk_looks_again_when_a_rule_is_broken_whose_record_was_lost() {
    let (mut kernel, mut ledger) = (Kernel::default(), ledger());
    kernel.now_ns = 1000;
    let lost = [
        kernel.create(),
        kernel.bind(1, stream(1)).unwrap().1,
        kernel.end(stream(1)).unwrap(),
    ];
    assert_eq!(lost.len(), 3);
    kernel.now_ns += GRACE_NS / 2;
    kernel.walk(&mut ledger, true);
    assert!(ledger.findings().sorted().is_empty());
    kernel.walk(&mut ledger, false);
    assert_eq!(ledger.deadlines.len(), 1, "a deadline is kept once");
    assert!(!ledger.take_overdue(1000 + GRACE_NS), "grace is not over");
    assert!(ledger.take_overdue(1001 + GRACE_NS));
}

#[test]
fn deadlines_come_in_the_order_of_their_times() {
    let mut ledger = ledger();
    let mut kernel = Kernel {
        now_ns: 1000,
        ..Kernel::default()
    };
    for _ in 0..3 {
        ledger.apply(&kernel.create());
    }
    ledger.add_deadline(900, Deadline::Socket(2));
    ledger.add_deadline(500, Deadline::Socket(1));
    assert!(ledger.take_overdue(501 + GRACE_NS));
    assert!(!ledger.take_overdue(900 + GRACE_NS));
    assert!(ledger.take_overdue(901 + GRACE_NS));
}

#[test]
#[cfg_attr(miri, ignore = "a day takes it too long")]
fn a_day_of_guarding_takes_no_more_memory_than_an_hour() {
    const MINUTE: u64 = 60_000_000_000;
    let mut ledger = ledger();
    ledger.follow_findings();
    let mut kernel = Kernel {
        now_ns: 1,
        ..Kernel::default()
    };
    let mut sizes = Vec::new();
    for minute in 1..=24 * 60 {
        for n in 0..20 {
            let id = (minute - 1) * 20 + n + 1;
            let owner = stream(id);
            ledger.apply(&kernel.create());
            ledger.apply(&kernel.bind(id, owner).unwrap().1);
            ledger.apply(&kernel.end(owner).unwrap());
            kernel.now_ns += GRACE_NS / 2;
            // Every other one is released too late.
            kernel.now_ns += if n % 2 == 0 { 2 * GRACE_NS } else { 0 };
            kernel.walk(&mut ledger, false);
            ledger.apply(&kernel.release(id).unwrap());
        }
        kernel.now_ns += MINUTE;
        kernel.walk(&mut ledger, false);
        ledger.take_overdue(kernel.now_ns);
        ledger.forget_owners();
        let changes = ledger.take_changes().len();
        assert!(changes >= 20, "{changes} changes: each is told twice");
        if minute % 60 == 0 {
            sizes.push((
                ledger.lifetimes.len(),
                ledger.findings.iter().count(),
                ledger.deadlines.len(),
                ledger.released_before_bind.len(),
            ));
        }
    }
    sizes.dedup();
    assert_eq!(sizes, [(0, 0, 0, 0)]);
}
