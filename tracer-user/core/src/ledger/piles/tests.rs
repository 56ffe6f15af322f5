//! Programs that pile connections up, and programs that only look like it, by passed-in time.

use super::super::fixtures::facts;
use super::*;

const SECOND: u64 = 1_000_000_000;
const GRACE: u64 = SECOND;
const LIMITS: PileLimits = PileLimits {
    after_ns: 10 * SECOND,
    growth: 8,
};

/// A program with connections to one target, looked at once a second.
#[derive(Default)]
struct Program {
    now_ns: u64,
    next_id: u64,
    open: Vec<Sample>,
    piles: Piles,
    reported: Vec<u64>,
}

impl Program {
    fn key() -> PileKey {
        PileKey {
            opener: 42,
            target: PileTarget::Tcp(([127, 0, 0, 1], 6080).into()),
        }
    }

    /// Opens a connection and moves a byte on it.
    fn open_and_use(&mut self) -> u64 {
        self.open_and_use_to(Self::key().target)
    }

    fn open_and_use_to(&mut self, target: PileTarget) -> u64 {
        self.next_id += 1;
        self.open.push(Sample {
            key: PileKey {
                target,
                ..Self::key()
            },
            id: self.next_id,
            born_ns: self.now_ns,
            last_byte_ns: self.now_ns,
            longest_silence_ns: 0,
            is_used: true,
            comm: *b"server\0\0\0\0\0\0\0\0\0\0",
        });
        self.next_id
    }

    fn reuse(&mut self, id: u64) {
        let now_ns = self.now_ns;
        let sample = self.open.iter_mut().find(|sample| sample.id == id);
        let sample = sample.unwrap();
        let silence_ns = now_ns - sample.last_byte_ns;
        sample.longest_silence_ns = sample.longest_silence_ns.max(silence_ns);
        sample.last_byte_ns = now_ns;
    }

    fn release(&mut self, id: u64) {
        self.open.retain(|sample| sample.id != id);
    }

    /// Lets a second pass and walks.
    fn tick(&mut self) {
        self.now_ns += SECOND;
        self.piles.begin_walk();
        for sample in &self.open {
            self.piles.observe(*sample);
        }
        self.piles.finish_walk(self.now_ns, GRACE, &LIMITS);
        self.reported = self.piles.grown.keys().copied().collect();
        self.reported.sort_unstable();
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.tick();
        }
    }
}

#[test]
fn a_connection_for_each_request_that_is_kept_piles_up() {
    let mut program = Program::default();
    for _ in 0..12 {
        program.open_and_use();
        program.ticks(2);
        assert!(
            program.reported.is_empty(),
            "at {} s",
            program.now_ns / SECOND
        );
    }
    for _ in 0..10 {
        program.open_and_use();
        program.ticks(2);
    }
    assert!(program.reported.len() >= 8, "{:?}", program.reported);
    assert!(!program.reported.contains(&1), "the baseline is innocent");
    assert_eq!(program.piles.notes(&LIMITS), []);
}

#[test]
#[cfg_attr(miri, ignore = "so many walks take it too long")]
fn a_pool_that_reuses_its_connections_is_no_pile() {
    let mut program = Program::default();
    let pool: Vec<u64> = (0..50).map(|_| program.open_and_use()).collect();
    for turn in 0..100 {
        program.reuse(pool[turn % pool.len()]);
        program.tick();
        assert!(program.reported.is_empty());
    }
}

#[test]
#[cfg_attr(miri, ignore = "so many walks take it too long")]
fn connections_that_the_program_comes_back_to_are_no_pile_while_others_come() {
    let mut program = Program::default();
    let mut tenants = Vec::new();
    for turn in 0..200 {
        if turn % 2 == 0 {
            tenants.push(program.open_and_use());
        }
        // Each is used again after the same while.
        for n in (0..tenants.len()).filter(|n| (turn - 2 * n) % 5 == 4) {
            program.reuse(tenants[n]);
        }
        program.tick();
        assert!(program.reported.is_empty(), "turn {turn}");
    }
    // The program forgets them, and only opens new ones.
    for _ in 0..40 {
        program.open_and_use();
        program.ticks(2);
    }
    assert!(program.reported.len() >= 8, "{:?}", program.reported.len());
}

#[test]
#[cfg_attr(miri, ignore = "so many walks take it too long")]
fn a_burst_that_drains_is_no_pile() {
    let mut program = Program::default();
    let keep = program.open_and_use();
    for _ in 0..3 {
        let burst: Vec<u64> = (0..100).map(|_| program.open_and_use()).collect();
        program.ticks(3);
        program.open_and_use();
        // An idle timeout below the time after which piles count.
        program.ticks(6);
        for id in burst {
            program.release(id);
        }
        program.reuse(keep);
        program.ticks(20);
        assert!(program.reported.is_empty());
    }
}

#[test]
#[cfg_attr(miri, ignore = "so many walks take it too long")]
fn a_housekeeper_that_replaces_quiet_members_is_innocent() {
    let mut program = Program::default();
    let mut pool: Vec<u64> = (0..20).map(|_| program.open_and_use()).collect();
    program.ticks(2);
    program.open_and_use();
    program.ticks(12);
    for turn in 0..60 {
        let place = turn % pool.len();
        program.release(pool[place]);
        pool[place] = program.open_and_use();
        program.ticks(2);
        assert!(program.reported.is_empty(), "turn {turn}");
    }
    let notes = program.piles.notes(&LIMITS);
    assert!(
        notes
            .first()
            .is_some_and(|note| note.state == PileState::Steady)
    );
}

#[test]
fn subscriptions_that_are_quiet_on_purpose_are_a_note() {
    let mut program = Program::default();
    for _ in 0..12 {
        program.open_and_use();
        program.tick();
        program.tick();
    }
    program.ticks(30);
    assert!(program.reported.is_empty());
    let notes = program.piles.notes(&LIMITS);
    assert_eq!(notes.len(), 1);
    assert_eq!(
        (notes[0].comm.as_str(), notes[0].target.as_str()),
        ("server", "127.0.0.1:6080")
    );
}

#[test]
fn a_young_pile_is_a_note() {
    let mut program = Program::default();
    for _ in 0..4 {
        for _ in 0..5 {
            program.open_and_use();
        }
        program.ticks(2);
    }
    assert!(program.reported.is_empty());
    let notes = program.piles.notes(&LIMITS);
    assert_eq!(notes.len(), 1);
    assert_eq!(notes[0].state, PileState::Young);
    assert_eq!(notes[0].size, 15, "the last five were not passed over");
}

#[test]
#[cfg_attr(miri, ignore = "so many walks take it too long")]
fn a_member_that_moves_a_byte_or_is_released_is_out() {
    let mut program = Program::default();
    for _ in 0..30 {
        program.open_and_use();
        program.ticks(2);
    }
    let reported = program.reported.clone();
    let (used, released) = (reported[0], reported[1]);
    program.reuse(used);
    program.release(released);
    program.tick();
    assert!(!program.reported.contains(&used) && !program.reported.contains(&released));
    assert_eq!(program.reported.len(), reported.len() - 2);
}

#[test]
#[cfg_attr(miri, ignore = "so many walks take it too long")]
fn what_is_released_soon_is_innocent_unless_the_program_ends_with_it() {
    let mut program = Program::default();
    for _ in 0..30 {
        program.open_and_use();
        program.ticks(2);
    }
    let (first, last) = (program.reported[0], *program.reported.last().unwrap());
    for id in [first, last] {
        program.piles.recv_released(id, program.now_ns, &LIMITS);
        program.release(id);
    }
    program.piles.begin_walk();
    let at_once = program.piles.finish_walk(program.now_ns, GRACE, &LIMITS);
    assert_eq!(at_once.cleared, []);
    program.piles.begin_walk();
    let later = program
        .piles
        .finish_walk(program.now_ns + GRACE + 1, GRACE, &LIMITS);
    assert_eq!(later.cleared, [last], "the first was kept for long");
}

#[test]
fn connections_that_all_carry_bytes_are_no_pile() {
    let mut program = Program::default();
    let mut all = Vec::new();
    for _ in 0..50 {
        all.push(program.open_and_use());
        for id in &all {
            program.reuse(*id);
        }
        program.tick();
        assert!(program.reported.is_empty());
    }
    assert_eq!(program.piles.notes(&LIMITS), []);
}

#[test]
fn accepted_connections_and_those_that_serve_a_request_are_in_no_pile() {
    let mut facts = facts(1);
    facts.remote_port = 6080;
    assert_eq!(PileKey::of(&facts), None, "it did not dial");
    facts.flags |= fact::DIALED;
    assert!(PileKey::of(&facts).is_some());
    facts.bound_ns = 5;
    facts.role = Role::Stream as u16;
    assert_eq!(PileKey::of(&facts), None, "its owner judges it");
    facts.role = Role::Pool as u16;
    assert!(PileKey::of(&facts).is_some());
}

#[test]
fn udp_sockets_are_told_apart_by_their_target_and_those_without_one_by_their_family() {
    let mut facts = facts(1);
    facts.protocol = IPPROTO_UDP;
    let key = |facts: &Facts| PileKey::of(facts).map(|key| key.target);
    assert_eq!(key(&facts), Some(PileTarget::Unconnected { is_ipv4: true }));
    facts.flags |= fact::DIALED;
    facts.remote = [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    facts.remote_port = 53;
    assert_eq!(
        key(&facts),
        Some(PileTarget::Udp(([127, 0, 0, 1], 53).into()))
    );
    facts.protocol = 1;
    assert_eq!(key(&facts), None, "nothing is known of raw sockets");
}

#[test]
fn one_connection_for_each_target_is_a_note_once_they_grow() {
    let to = |port| PileTarget::Tcp(([127, 0, 0, 1], port).into());
    let mut program = Program::default();
    for port in 1..=6 {
        program.open_and_use_to(to(port));
        program.ticks(2);
    }
    program.ticks(12);
    assert_eq!(program.piles.notes(&LIMITS), [], "a pool for each target");
    for port in 7..=30 {
        program.open_and_use_to(to(port));
        program.ticks(2);
    }
    assert!(program.reported.is_empty());
    let notes = program.piles.notes(&LIMITS);
    assert_eq!(notes.len(), 1);
    assert_eq!(
        (notes[0].state, notes[0].target.as_str()),
        (PileState::Spread, "all targets")
    );
}

#[test]
fn the_exit_of_the_process_does_not_clear_its_pile() {
    let mut program = Program::default();
    for _ in 0..10 {
        program.open_and_use();
        program.ticks(2);
    }
    let size = program.piles.notes(&LIMITS)[0].size;
    program.piles.opener_exited(42, program.now_ns);
    program.open.truncate(2);
    program.tick();
    program.open.clear();
    program.tick();
    assert_eq!(program.piles.notes(&LIMITS)[0].size, size);
}

#[test]
#[cfg_attr(miri, ignore = "so many walks take it too long")]
fn a_process_with_the_number_of_one_that_exited_is_judged() {
    let mut program = Program::default();
    for _ in 0..10 {
        program.open_and_use();
        program.ticks(2);
    }
    program.piles.opener_exited(42, program.now_ns);
    program.open.clear();
    program.ticks(2);
    for _ in 0..30 {
        program.open_and_use();
        program.ticks(2);
    }
    assert!(program.reported.len() >= 8, "{:?}", program.reported);
    assert!(program.reported.iter().all(|id| *id > 10));
}

#[test]
fn the_piles_go_with_their_connections() {
    let mut program = Program::default();
    for _ in 0..10 {
        program.open_and_use();
        program.tick();
    }
    program.open.clear();
    program.tick();
    assert!(program.piles.piles.is_empty());
}
