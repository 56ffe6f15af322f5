//! Labels, on sockets that stay too long.

use std::thread;

use tracer_abi::annotation::{self, LABEL_MAX, Role};

use super::{TOO_LONG, confess, connection, end, owner};

/// Lengths in bytes: none, whole words and others, and the most.
pub(crate) const LENGTHS: [usize; 5] = [0, 1, 24, 25, LABEL_MAX];

pub(super) fn commit(name: &str) {
    match name {
        "label_hostile" => hostile(),
        "label_kept" => kept(),
        "label_released_late" => released_late(),
        "label_bound_anew_too_late" => bound_anew_too_late(),
        name => panic!("no such deed: {name}"),
    }
}

/// The label of a length, which tells it apart from the others byte by byte.
pub(crate) fn of(length: usize) -> String {
    ('A'..='z').cycle().skip(length).take(length).collect()
}

fn hostile() {
    let (dialed, _accepted) = connection();
    annotation::bind(&dialed, Role::Stream, owner(1), "\u{1b}]52;c;evil\u{7}").unwrap();
    end(&dialed, 1);
    confess(&dialed);
    thread::sleep(TOO_LONG);
}

fn ended() -> Vec<(std::net::TcpStream, std::net::TcpStream)> {
    let mut connections = Vec::new();
    for (n, length) in (1..).zip(LENGTHS) {
        let (dialed, accepted) = connection();
        annotation::bind(&dialed, Role::Stream, owner(n), &of(length)).unwrap();
        end(&dialed, n);
        confess(&dialed);
        connections.push((dialed, accepted));
    }
    connections
}

fn kept() {
    let _connections = ended();
    thread::sleep(TOO_LONG);
}

fn released_late() {
    let connections = ended();
    thread::sleep(TOO_LONG);
    drop(connections);
}

fn bound_anew_too_late() {
    let connections = ended();
    thread::sleep(TOO_LONG);
    for (n, (dialed, _)) in (101..).zip(&connections) {
        annotation::bind(dialed, Role::Stream, owner(n), "another").unwrap();
    }
}
