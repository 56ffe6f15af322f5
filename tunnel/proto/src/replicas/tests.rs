use std::time::Duration;

use super::*;
use crate::Time;

const fn link(instance: u64, slot: u8) -> Option<LinkId> {
    Some(LinkId { instance, slot })
}

const fn terms(replicas: Replicas) -> Terms {
    Terms {
        replicas,
        instances_max: 3,
    }
}

/// A session is its number; these say how it is.
#[derive(Default)]
struct World {
    overdue: Vec<u32>,
    draining: Vec<u32>,
    streams: Vec<u32>,
}

impl World {
    fn health(&self, session: u32) -> Health {
        if self.draining.contains(&session) {
            Health::Draining
        } else if self.overdue.contains(&session) {
            Health::Overdue
        } else {
            Health::Live
        }
    }

    fn load(&self, session: u32) -> Load {
        let streams = self.streams.iter().filter(|of| **of == session).count();
        let health = self.health(session);
        Load { health, streams }
    }

    fn insert(
        &self,
        sessions: &mut Sessions<u32>,
        link: Option<LinkId>,
        session: u32,
        terms: Terms,
    ) -> Result<Vec<u32>, Refusal> {
        let would_replace = sessions.check(link, terms, |it| self.health(*it));
        let replaced = sessions.insert(link, session, terms, |it| self.health(*it));
        assert_eq!(
            would_replace,
            replaced.as_ref().map(|it| !it.is_empty()).map_err(|it| *it)
        );
        replaced
    }

    /// Opens a stream and returns where.
    fn open(&mut self, sessions: &mut Sessions<u32>, replicas: Replicas) -> Option<u32> {
        let picked = sessions.pick(replicas, |it| Some(self.load(*it))).copied();
        self.streams.extend(picked);
        picked
    }
}

/// Sessions of instances of one link each, by the policy.
fn sessions(replicas: Replicas, numbers: &[u32]) -> Sessions<u32> {
    let mut sessions = Sessions::default();
    for number in numbers {
        let link = link(u64::from(*number), 0);
        let inserted = sessions.insert(link, *number, terms(replicas), |_| Health::Live);
        assert_eq!(inserted, Ok(vec![]));
    }
    sessions
}

fn left(sessions: &Sessions<u32>) -> Vec<u32> {
    sessions.iter().map(|(_, session)| *session).collect()
}

#[test]
fn policies_read_back_as_written() {
    for policy in Replicas::ALL {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    assert_eq!("newest".parse::<Replicas>(), Err(ReplicasError));
    assert_eq!(Replicas::default(), Replicas::Share);
}

#[test]
fn agents_of_one_name_live_side_by_side_and_the_newest_takes_the_streams() {
    let mut world = World::default();
    let mut sessions = sessions(Replicas::Share, &[1, 2]);
    assert_eq!(left(&sessions), [1, 2]);
    for _ in 0..3 {
        assert_eq!(world.open(&mut sessions, Replicas::Share), Some(2));
    }
    // Without a link there is no telling instances apart: each is one of its own.
    for number in [3, 4] {
        let inserted = world.insert(
            &mut sessions,
            None,
            number,
            Terms {
                instances_max: 4,
                ..terms(Replicas::Share)
            },
        );
        assert_eq!(inserted, Ok(vec![]));
        assert_eq!(world.open(&mut sessions, Replicas::Share), Some(number));
    }
    assert_eq!(sessions.remove(|it| *it == 4), Some((None, 4)));
    assert_eq!(world.open(&mut sessions, Replicas::Share), Some(3));
}

#[test]
fn who_is_frozen_or_drains_is_passed_over() {
    let mut sessions = sessions(Replicas::Share, &[1, 2, 3]);
    for policy in [Replicas::Share, Replicas::Spread, Replicas::Replace] {
        let mut world = World {
            overdue: vec![3],
            ..World::default()
        };
        for _ in 0..3 {
            assert_ne!(world.open(&mut sessions, policy), Some(3), "{policy}");
        }
        world.draining = vec![2];
        for _ in 0..3 {
            assert_eq!(world.open(&mut sessions, policy), Some(1), "{policy}");
        }
        // One that may be frozen is better than one that says no.
        world.draining = vec![1, 2];
        assert_eq!(world.open(&mut sessions, policy), Some(3), "{policy}");
        world.overdue = vec![];
        world.draining = vec![1, 2, 3];
        assert!(world.open(&mut sessions, policy).is_some(), "{policy}");
    }
    assert_eq!(
        Sessions::<u32>::default().pick(Replicas::Share, |_| unreachable!()),
        None
    );
}

#[test]
fn a_session_that_was_tried_is_left_out() {
    let mut sessions = sessions(Replicas::Share, &[1, 2, 3]);
    for policy in [Replicas::Share, Replicas::Spread] {
        let mut tried = vec![];
        for _ in 0..3 {
            let load = |it: &u32| (!tried.contains(it)).then(|| World::default().load(*it));
            let picked = *sessions.pick(policy, load).unwrap();
            tried.push(picked);
        }
        assert_eq!(sessions.pick(policy, |_| None), None);
        tried.sort_unstable();
        assert_eq!(tried, [1, 2, 3], "{policy}");
    }
}

#[test]
fn the_links_of_one_instance_are_used_side_by_side() {
    let mut world = World::default();
    let mut sessions = Sessions::default();
    for (session, at) in [
        (1, link(1, 0)),
        (2, link(2, 0)),
        (3, link(2, 1)),
        (4, link(1, 1)),
    ] {
        let inserted = world.insert(&mut sessions, at, session, terms(Replicas::Share));
        assert_eq!(inserted, Ok(vec![]));
    }
    // A link that comes back does not make its instance a newer one.
    assert_eq!(left(&sessions), [1, 4, 2, 3]);
    let mut taken: Vec<_> = (0..4)
        .filter_map(|_| world.open(&mut sessions, Replicas::Share))
        .collect();
    taken.sort_unstable();
    assert_eq!(taken, [2, 2, 3, 3]);
    world.overdue = vec![3];
    assert_eq!(world.open(&mut sessions, Replicas::Share), Some(2));
    world.overdue = vec![2, 3];
    let older = world.open(&mut sessions, Replicas::Share);
    assert!(matches!(older, Some(1 | 4)), "{older:?}");
}

#[test]
fn spread_streams_go_where_there_are_fewest() {
    let mut world = World::default();
    let mut sessions = sessions(Replicas::Spread, &[1, 2]);
    for _ in 0..6 {
        world.open(&mut sessions, Replicas::Spread);
    }
    let of = |world: &World, session| world.load(session).streams;
    assert_eq!((of(&world, 1), of(&world, 2)), (3, 3));
    // A newcomer is filled up first.
    world
        .insert(&mut sessions, link(3, 0), 3, terms(Replicas::Spread))
        .unwrap();
    for _ in 0..3 {
        assert_eq!(world.open(&mut sessions, Replicas::Spread), Some(3));
    }
    // Streams that end at once take turns.
    let mut taken: Vec<_> = (0..3)
        .filter_map(|_| {
            let taken = world.open(&mut sessions, Replicas::Spread);
            world.streams.pop();
            taken
        })
        .collect();
    taken.sort_unstable();
    assert_eq!(taken, [1, 2, 3]);
}

#[test]
fn a_link_replaces_its_older_self_whatever_the_policy() {
    let world = World::default();
    for policy in Replicas::ALL {
        let mut sessions = sessions(policy, &[1]);
        let again = world.insert(&mut sessions, link(1, 0), 2, terms(policy));
        assert_eq!(again, Ok(vec![1]), "{policy}");
        let more = world.insert(&mut sessions, link(1, 1), 3, terms(policy));
        assert_eq!(more, Ok(vec![]), "{policy}");
        assert_eq!(left(&sessions), [2, 3], "{policy}");
    }
}

#[test]
fn a_newcomer_replaces_or_is_refused_as_the_policy_says() {
    let mut world = World::default();
    let mut sessions = sessions(Replicas::Share, &[1, 2]);
    let refused = world.insert(&mut sessions, link(3, 0), 3, terms(Replicas::Refuse));
    assert_eq!(refused, Err(Refusal::Taken));
    let replaced = world.insert(&mut sessions, link(3, 0), 3, terms(Replicas::Replace));
    assert_eq!(replaced, Ok(vec![1, 2]));
    // An agent without links replaces and is replaced.
    let replaced = world.insert(&mut sessions, None, 4, terms(Replicas::Replace));
    assert_eq!(replaced, Ok(vec![3]));
    let refused = world.insert(&mut sessions, None, 5, terms(Replicas::Refuse));
    assert_eq!(refused, Err(Refusal::Taken));
    // A frozen agent keeps nobody away, and one that drains goes on with its streams.
    world.draining = vec![4];
    let taken = world.insert(&mut sessions, link(5, 0), 5, terms(Replicas::Refuse));
    assert_eq!(taken, Ok(vec![]));
    world.overdue = vec![5];
    let taken = world.insert(&mut sessions, link(6, 0), 6, terms(Replicas::Refuse));
    assert_eq!(taken, Ok(vec![5]));
    assert_eq!(left(&sessions), [4, 6]);
}

#[test]
fn instances_are_bounded_and_a_dead_one_makes_room() {
    let mut world = World::default();
    let mut sessions = sessions(Replicas::Share, &[1, 2, 3]);
    let come = |world: &World, sessions: &mut Sessions<u32>, number| {
        let link = link(u64::from(number), 0);
        world.insert(sessions, link, number, terms(Replicas::Share))
    };
    assert_eq!(come(&world, &mut sessions, 4), Err(Refusal::Full));
    // Another link of an instance that is there is no new instance.
    let more = world.insert(&mut sessions, link(2, 1), 22, terms(Replicas::Share));
    assert_eq!(more, Ok(vec![]));
    // One live link is enough.
    world.overdue = vec![2];
    world.draining = vec![1];
    assert_eq!(come(&world, &mut sessions, 4), Err(Refusal::Full));
    world.overdue = vec![2, 22, 3];
    assert_eq!(come(&world, &mut sessions, 4), Ok(vec![2, 22]));
    assert_eq!(left(&sessions), [1, 3, 4]);
}

#[test]
fn a_name_flaps_when_short_sessions_follow_each_other() {
    const SECOND: Duration = Duration::from_secs(1);
    let mut flapping = Flapping::default();
    assert!(flapping.is_over(Time::ZERO));
    let ends = [0, 10, 30, 70].map(|at| flapping.ended(SECOND * at, SECOND));
    assert_eq!(ends, [Flap::No, Flap::No, Flap::No, Flap::Warn]);
    assert_eq!(flapping.ended(SECOND * 80, SECOND), Flap::Known);
    // A rolling update ends sessions that lived long.
    assert_eq!(flapping.ended(SECOND * 81, SECOND * 30), Flap::No);
    let again = [500, 501, 502, 503].map(|at| flapping.ended(SECOND * at, SECOND));
    assert_eq!(again, [Flap::No, Flap::No, Flap::No, Flap::Known]);
    // A while after the warning there is another one.
    let again = [700, 701, 702, 703].map(|at| flapping.ended(SECOND * at, SECOND));
    assert_eq!(again, [Flap::No, Flap::No, Flap::No, Flap::Warn]);
    // Slow comings and goings are none.
    let slow = [2000, 2060, 2120, 2180, 2240].map(|at| flapping.ended(SECOND * at, SECOND));
    assert_eq!(slow, [Flap::No; 5]);
    assert!(!flapping.is_over(SECOND * 2300));
    assert!(flapping.is_over(SECOND * 2361));
}
