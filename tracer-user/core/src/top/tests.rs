//! Looks at sockets that are made up, and what two of them show.

use tracer_abi::annotation::LABEL_MAX;
use tracer_abi::facts::{IPPROTO_UDP, Socket};

use super::*;
use crate::event::Descriptor;
use crate::ledger::fixtures::{facts, sighting};

const SECOND_NS: u64 = 1_000_000_000;
const ESTABLISHED: u32 = 1;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LISTEN: u32 = 10;

/// A TCP socket of process 42 with this cookie, from port 40000 to port 80.
fn socket(cookie: u64, state: u32) -> Descriptor {
    let mut facts = facts(0);
    facts.comm = *b"leaky\0\0\0\0\0\0\0\0\0\0\0";
    facts.remote[..4].copy_from_slice(&[10, 0, 0, 7]);
    facts.remote_port = 80;
    facts.local_port = 40_000;
    let mut sighting = sighting();
    sighting.cookie = cookie;
    sighting.state = state;
    let label = [0; LABEL_MAX];
    Descriptor {
        sighting,
        socket: Some(Socket { facts, label }),
    }
}

fn with(mut of: Descriptor, change: impl FnOnce(&mut Descriptor)) -> Descriptor {
    change(&mut of);
    of
}

fn of_process(of: Descriptor, pid: u32) -> Descriptor {
    with(of, |of| of.sighting.tgid = pid)
}

fn local(of: Descriptor, port: u16) -> Descriptor {
    with(of, |of| of.socket.as_mut().unwrap().facts.local_port = port)
}

fn remote(of: Descriptor, port: u16) -> Descriptor {
    with(of, |of| {
        of.socket.as_mut().unwrap().facts.remote_port = port
    })
}

fn listener(port: u16) -> Descriptor {
    local(remote(socket(9000 + u64::from(port), LISTEN), 0), port)
}

/// Adds a look after so many seconds.
fn add(top: &mut Top, seconds: u64, descriptors: &[Descriptor]) -> Snapshot {
    let mut look = Look::new(seconds * SECOND_NS);
    for descriptor in descriptors {
        look.add(descriptor);
    }
    // Each process from 100 on has a network namespace of its own.
    top.add(look, |pid| u64::from(pid / 100))
}

/// The targets and open sockets, the most suspicious first.
fn rows(snapshot: &Snapshot) -> Vec<(String, u64)> {
    let rows = snapshot.rows.iter();
    rows.map(|row| (row.target.to_string(), row.counts.open))
        .collect()
}

#[test]
fn two_looks_tell_what_is_kept_quiet_and_grows() {
    let busy = |bytes| with(socket(3, ESTABLISHED), |of| of.sighting.bytes_acked = bytes);
    let mut top = Top::default();
    let first = [
        socket(1, CLOSE_WAIT),
        socket(2, CLOSE),
        busy(1),
        socket(4, ESTABLISHED),
    ];
    let snapshot = add(&mut top, 10, &first);
    assert_eq!((snapshot.looks, snapshot.rows[0].counts.score()), (1, 0));
    let second = [
        socket(1, CLOSE_WAIT),
        socket(2, CLOSE),
        busy(2),
        socket(4, ESTABLISHED),
        socket(5, CLOSE_WAIT),
        socket(6, CLOSE),
    ];
    let snapshot = add(&mut top, 11, &second);
    assert_eq!(snapshot.interval_ns, SECOND_NS);
    assert_eq!((snapshot.sockets, snapshot.processes), (6, 1));
    let row = &snapshot.rows[0];
    assert_eq!((row.pid, row.comm.as_str()), (42, "leaky"));
    assert_eq!(row.target.to_string(), "10.0.0.7:80");
    let wanted = Counts {
        open: 6,
        close_wait: 2,
        close_wait_kept: 1,
        dead: 2,
        dead_kept: 1,
        // The one in CLOSE_WAIT and the one that is established.
        quiet: 2,
        idle: None,
        growth: 2,
        growth_since_start: 2,
    };
    assert_eq!(row.counts, wanted);
    let snapshot = add(&mut top, 13, &second[..5]);
    assert_eq!(snapshot.rows[0].counts.growth, -1);
    assert_eq!(snapshot.rows[0].counts.growth_since_start, 1);
}

#[test]
fn idle_is_told_after_a_minute_only() {
    let mut top = Top::default();
    let with_bytes = |bytes| {
        let busy = with(socket(1, ESTABLISHED), |of| {
            of.sighting.bytes_received = bytes;
        });
        [busy, socket(2, ESTABLISHED)]
    };
    add(&mut top, 0, &with_bytes(0));
    let snapshot = add(&mut top, 59, &with_bytes(1));
    assert_eq!(snapshot.rows[0].counts.idle, None);
    let snapshot = add(&mut top, 60, &with_bytes(1));
    assert_eq!(snapshot.rows[0].counts.quiet, 2);
    assert_eq!(snapshot.rows[0].counts.idle, Some(1));
    assert_eq!(snapshot.rows[0].counts.score(), 1);
}

#[test]
fn a_socket_counts_once_for_each_process_that_holds_it() {
    let mut top = Top::default();
    let dup = with(socket(1, ESTABLISHED), |of| of.sighting.fd += 1);
    let other = of_process(socket(1, ESTABLISHED), 43);
    let snapshot = add(&mut top, 0, &[socket(1, ESTABLISHED), dup, other]);
    assert_eq!((snapshot.sockets, snapshot.processes), (2, 2));
    assert!(snapshot.rows.iter().all(|row| row.counts.open == 1));
}

#[test]
fn what_a_listener_accepted_is_told_by_the_listener() {
    let mut top = Top::default();
    let visitor = |cookie, port| local(remote(socket(cookie, ESTABLISHED), port), 8080);
    let elsewhere = of_process(visitor(3, 3), 100);
    let looked = [visitor(1, 1), visitor(2, 2), listener(8080), elsewhere];
    let snapshot = add(&mut top, 0, &looked);
    assert_eq!(
        rows(&snapshot),
        [
            ("accepted at 0.0.0.0:8080".to_owned(), 2),
            ("listeners".to_owned(), 1),
            // Its network namespace has no such listener.
            ("10.0.0.7:3".to_owned(), 1),
        ]
    );
}

#[test]
fn datagram_sockets_are_neither_dead_nor_quiet() {
    let udp = |cookie, port| {
        with(remote(socket(cookie, CLOSE), port), |of| {
            of.socket.as_mut().unwrap().facts.protocol = IPPROTO_UDP;
            of.sighting.flags = 0;
        })
    };
    let mut top = Top::default();
    add(&mut top, 0, &[udp(1, 0), udp(2, 53)]);
    let snapshot = add(&mut top, 1, &[udp(1, 0), udp(2, 53)]);
    assert!(snapshot.rows.iter().all(|row| row.counts.score() == 0));
    assert_eq!(
        rows(&snapshot),
        [
            ("udp 10.0.0.7:53".to_owned(), 1),
            ("udp not connected".to_owned(), 1)
        ]
    );
    let view = snapshot.view(false, 20);
    assert!(view.rows.is_empty());
    assert_eq!(snapshot.view(true, 1).omitted_sockets, 1);
}

#[test]
fn the_worst_comes_first_and_a_process_does_not_fill_the_screen() {
    let mut looked: Vec<Descriptor> = (1..=30)
        .map(|n| remote(socket(n.into(), CLOSE_WAIT), n))
        .collect();
    looked.extend((100..120).map(|n| of_process(socket(n, ESTABLISHED), 43)));
    let mut top = Top::default();
    add(&mut top, 0, &looked);
    let snapshot = add(&mut top, 1, &looked);
    let view = snapshot.view(false, 20);
    let shown: Vec<(u32, String)> = view
        .rows
        .iter()
        .map(|row| (row.pid, row.target.to_string()))
        .collect();
    assert_eq!(shown.len(), 7);
    assert_eq!(shown[0], (42, "25 more targets".to_owned()));
    assert_eq!(view.rows[0].counts.close_wait_kept, 25);
    assert_eq!(shown[1], (43, "10.0.0.7:80".to_owned()));
    assert_eq!(snapshot.view(false, 3).omitted_rows, 4);
    assert_eq!(snapshot.view(true, usize::MAX).rows.len(), 31);
}

#[test]
fn names_are_printable_and_other_families_are_counted() {
    let mut top = Top::default();
    let hostile = with(socket(1, ESTABLISHED), |of| {
        of.socket.as_mut().unwrap().facts.comm = *b"\x1b[2Jevil\0\0\0\0\0\0\0\0";
    });
    let unix = with(socket(2, ESTABLISHED), |of| of.socket = None);
    let snapshot = add(&mut top, 0, &[hostile, unix]);
    assert_eq!(snapshot.rows[0].comm, "\u{fffd}[2Jevil");
    assert_eq!((snapshot.sockets, snapshot.other_families), (1, 1));
}

#[test]
#[cfg_attr(miri, ignore = "as many sockets as the bound take it too long")]
fn what_a_look_keeps_is_bounded() {
    let mut look = Look::new(0);
    let most = u64::try_from(look::SOCKETS_MAX).unwrap();
    for cookie in 0..most + 3 {
        look.add(&socket(cookie, ESTABLISHED));
    }
    let snapshot = Top::default().add(look, |_| 0);
    assert_eq!((snapshot.sockets, snapshot.unlisted), (most, 3));
}

/// Both ends of a leak are on this machine.
#[test]
fn who_dialed_comes_before_who_accepted() {
    let dialed = |cookie| of_process(socket(cookie, ESTABLISHED), 50);
    let accepted = |cookie, port| local(remote(socket(cookie, ESTABLISHED), port), 80);
    let first = [listener(80), dialed(1), accepted(2, 1)];
    let then = [
        listener(80),
        dialed(1),
        accepted(2, 1),
        dialed(3),
        accepted(4, 2),
    ];
    let mut top = Top::default();
    add(&mut top, 0, &first);
    let snapshot = add(&mut top, 1, &then);
    let pids: Vec<u32> = snapshot.rows.iter().map(|row| row.pid).collect();
    assert_eq!(pids, [50, 42, 42]);
}
