#![allow(
    clippy::disallowed_methods,
    reason = "tests are the world outside of the tunnel"
)]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::dial::*;
use crate::io::resolver::Files;
use crate::io::socket::NOBODY;

/// An address that answers no SYN: a listener whose backlog is full.
struct Hole {
    address: SocketAddr,
    _listener: socket2::Socket,
    _full: TcpStream,
}

impl Hole {
    async fn dig(domain: Domain, at: &str) -> Self {
        let listener = socket2::Socket::new(domain, Type::STREAM, None).unwrap();
        listener
            .bind(&at.parse::<SocketAddr>().unwrap().into())
            .unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        Self {
            address,
            _listener: listener,
            _full: TcpStream::connect(address).await.unwrap(),
        }
    }

    /// Sockets in SYN_SENT to this address.
    fn attempts(&self) -> usize {
        let table = match self.address {
            SocketAddr::V4(_) => "/proc/net/tcp",
            SocketAddr::V6(_) => "/proc/net/tcp6",
        };
        let remote = format!(":{:04X} 02 ", self.address.port());
        let table = std::fs::read_to_string(table).unwrap();
        let dialing = table.lines().filter(|line| line.contains(&remote));
        // A table that changes while it is read may show a socket twice.
        let local = dialing.filter_map(|line| line.split_whitespace().nth(1));
        local.collect::<HashSet<_>>().len()
    }
}

fn target() -> Target {
    Target::tcp("two.example", Some(80)).unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(5), poll).await;
    assert!(done.is_ok(), "{what} did not happen");
}

#[tokio::test]
async fn a_black_hole_costs_a_moment_and_leaves_no_socket() {
    for hole in [
        Hole::dig(Domain::IPV6, "[::1]:0").await,
        Hole::dig(Domain::IPV4, "127.0.0.1:0").await,
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = vec![hole.address, listener.local_addr().unwrap()];
        let (target, seen) = (target(), std::cell::Cell::new(0));
        let dialed = tokio::select! {
            dialed = dial_first(addresses, &target, NOBODY) => dialed,
            () = async { loop {
                seen.set(seen.get().max(hole.attempts()));
                tokio::time::sleep(Duration::from_millis(5)).await;
            } } => unreachable!(),
        };
        assert_eq!(seen.get(), 1);
        // The loser is gone when the winner is told.
        assert_eq!(hole.attempts(), 0);
        let accepted = tokio::time::timeout(Duration::from_secs(5), listener.accept()).await;
        accepted.unwrap().unwrap();
        drop(dialed.unwrap());
    }
}

#[tokio::test]
async fn no_attempt_outlives_the_dial() {
    let holes = [
        Hole::dig(Domain::IPV4, "127.0.0.1:0").await,
        Hole::dig(Domain::IPV6, "[::1]:0").await,
    ];
    let addresses = holes.iter().map(|hole| hole.address).collect();
    let target = target();
    let mut dial = Box::pin(dial_first(addresses, &target, NOBODY));
    let begun = || holes.iter().all(|hole| hole.attempts() == 1);
    tokio::select! {
        _ = &mut dial => panic!("nobody answers"),
        () = until("both attempts", begun) => {}
    }
    drop(dial);
    assert!(holes.iter().all(|hole| hole.attempts() == 0));
}

#[tokio::test]
async fn a_dial_ends_at_its_deadline() {
    let hole = Hole::dig(Domain::IPV4, "127.0.0.1:0").await;
    let target = Target::tcp(&hole.address.to_string(), None).unwrap();
    let policy = Policy::new(vec!["127.0.0.0/8:*".parse().unwrap()]);
    let resolver = Resolver::new(Files::default());
    let short = Duration::from_millis(100);
    let dialed = dial(&target, NOBODY, &policy, &resolver, short).await;
    assert_eq!(dialed.err(), Some(Reason::TimedOut));
    assert_eq!(hole.attempts(), 0);
}

#[tokio::test]
async fn only_what_was_allowed_of_the_answers_is_dialed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (long, resolver) = (Duration::from_secs(5), Resolver::new(Files::default()));
    for (rule, host, expected) in [
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.1", "[::ffff:127.0.0.1]", None),
        ("127.0.0.1", "localhost", None),
        ("localhost", "localhost", None),
        ("127.0.0.2", "localhost", Some(Reason::Denied)),
        ("0.0.0.0/0", "localhost", Some(Reason::Denied)),
        ("0.0.0.0/0", "0.0.0.0", Some(Reason::Denied)),
        ("*.invalid", "a.invalid", Some(Reason::Unresolved)),
        // Who may name any host does not learn which names exist.
        ("10.0.0.0/8", "a.invalid", Some(Reason::Denied)),
        ("10.0.0.0/8", "localhost", Some(Reason::Denied)),
    ] {
        let policy = Policy::new(vec![format!("{rule}:{port}").parse().unwrap()]);
        let target = Target::tcp(&format!("{host}:{port}"), None).unwrap();
        let dialed = dial(&target, NOBODY, &policy, &resolver, long).await;
        let found = dialed.as_ref().err().copied();
        assert_eq!(found, expected, "{rule} {host}");
        if dialed.is_ok() {
            let accepted = tokio::time::timeout(long, listener.accept()).await;
            accepted.unwrap().unwrap();
        }
    }
}

/// A name with two answers, one of them forbidden: the forbidden one is not among those that are
/// dialed.
#[test]
fn a_rebinding_name_keeps_only_its_harmless_answers() {
    let endpoint = Endpoint::parse("rebound.example", Some(80)).unwrap();
    let policy = Policy::new(vec!["*.example:80".parse().unwrap()]);
    let answers = |texts: &[&str]| -> Vec<SocketAddr> {
        let answer = |text: &&str| SocketAddr::new(text.parse().unwrap(), 80);
        texts.iter().map(answer).collect()
    };
    for (given, kept) in [
        (vec!["192.0.2.1", "127.0.0.1"], Ok(vec!["192.0.2.1"])),
        (
            vec!["::1", "::ffff:192.0.2.1", "169.254.169.254"],
            Ok(vec!["192.0.2.1"]),
        ),
        (vec!["127.0.0.1", "::1"], Err(Reason::Denied)),
        (vec![], Err(Reason::Unresolved)),
    ] {
        let kept = kept.map(|kept| answers(&kept));
        assert_eq!(
            allowed(&endpoint, answers(&given), &policy, Protocol::Tcp),
            kept
        );
    }
}
