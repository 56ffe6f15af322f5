//! One socket's life, and the rules that say what it did wrong.
//!
//! ```text
//!   socket(2) ──────────────► HELD ───────── last fd gone ─────────► released
//!                              ▲  ╲                                     ▲
//!   handshake ──► WAITING ─────┘   ╲ BIND, END, CLOSE_WAIT, CLOSE       │
//!                    │   accept      only mark when a rule             │
//!                    │   (first sight of an fd)   began to run         │
//!                    └──────── listener gone: never had an fd          │
//!                                       lost record: the witness ──────┘
//! ```
//! WAITING: in a listener's backlog, as far as anyone has seen. HELD: a file descriptor was seen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tracer_abi::annotation::Role;
use tracer_abi::facts::{AF_INET, Ends, Facts, IPPROTO_TCP, fact};
use tracer_abi::record::{ANNOTATES, BY_EXIT};

use crate::verdict::{Kind, Tuple};

/// `TCP_*` (net/tcp_states.h) that the rules name.
pub const TCP_CLOSE: u16 = 7;
/// The peer has finished.
pub const TCP_CLOSE_WAIT: u16 = 8;
/// Waits for connections.
pub const TCP_LISTEN: u16 = 10;

/// The names of [`Facts::state`] and of [`Sighting::state`](tracer_abi::sighting::Sighting::state).
#[must_use]
pub const fn tcp_state_name(state: u16) -> &'static str {
    match state {
        1 => "ESTABLISHED",
        2 => "SYN_SENT",
        3 => "SYN_RECV",
        4 => "FIN_WAIT1",
        5 => "FIN_WAIT2",
        6 => "TIME_WAIT",
        TCP_CLOSE => "CLOSE",
        TCP_CLOSE_WAIT => "CLOSE_WAIT",
        9 => "LAST_ACK",
        TCP_LISTEN => "LISTEN",
        11 => "CLOSING",
        12 => "NEW_SYN_RECV",
        _ => "UNKNOWN",
    }
}

/// How long a socket may do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the end of the request (or of the peer) to the release, in nanoseconds.
    pub grace_ns: u64,
    /// Without a byte, in nanoseconds.
    pub idle_ns: u64,
}

/// A rule that holds, and since when it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub kind: Kind,
    /// END, CLOSE_WAIT, CLOSE, opening, last byte or release.
    pub since_ns: u64,
}

/// What the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What the kernel keeps.
    pub facts: &'a Facts,
    /// Ends of the present owner.
    pub ends: &'a Ends,
    /// [`ANNOTATES`] and [`BY_EXIT`].
    pub flags: u32,
    /// When the last byte was seen to move, for sockets that count bytes.
    pub moved_ns: Option<u64>,
    /// The moment of the judgement: now for an open socket, its release for another.
    pub at_ns: u64,
}

impl Evidence<'_> {
    /// Tries the rules in order; the first that holds is the socket's one violation.
    #[must_use]
    pub fn violation(&self, timeouts: &Timeouts) -> Option<Violation> {
        Kind::ALL.into_iter().find_map(|kind| {
            let since_ns = self.since(kind)?;
            let late_ns = since_ns.saturating_add(limit_ns(kind, timeouts));
            (kind == Kind::OpenAtExit || self.at_ns > late_ns)
                .then_some(Violation { kind, since_ns })
        })
    }

    /// Returns the rule that is broken next if nothing changes, and the last moment at which it is not. Idleness, which every
    /// byte puts off, has no such moment.
    #[must_use]
    pub fn deadline(&self, timeouts: &Timeouts) -> Option<(Kind, u64)> {
        Kind::ALL
            .into_iter()
            .filter(|kind| !matches!(kind, Kind::Idle | Kind::OpenAtExit))
            .filter_map(|kind| {
                Some((
                    kind,
                    self.since(kind)?.saturating_add(limit_ns(kind, timeouts)),
                ))
            })
            .filter(|(_, at_ns)| *at_ns >= self.at_ns)
            .min_by_key(|(_, at_ns)| *at_ns)
    }

    /// Since when a rule runs against the socket; `None` when it does not run at all.
    fn since(&self, kind: Kind) -> Option<u64> {
        let facts = self.facts;
        // A pooled connection serves no request: only idleness counts.
        if kind != Kind::Idle && is_pooled(facts) {
            return None;
        }
        match kind {
            Kind::OutlivedRequest => self.ended(self.ends.own_ns),
            Kind::SessionRemnant => self.ended(self.ends.session_ns),
            // What happened in a listener's backlog is nobody's fault until there is a descriptor.
            Kind::PeerClosed => happened(facts.peer_done_ns).map(|at_ns| at_ns.max(facts.held_ns)),
            Kind::DeadSocket => happened(facts.dead_ns).map(|at_ns| at_ns.max(facts.held_ns)),
            Kind::Unowned => (is_tcp(facts) && facts.bound_ns == 0 && self.flags & ANNOTATES != 0)
                .then_some(facts.held_ns),
            Kind::Idle => self.moved_ns.filter(|_| facts.flags & fact::LISTENER == 0),
            Kind::OpenAtExit => (self.flags & BY_EXIT != 0).then_some(self.at_ns),
        }
    }

    /// When the request was over for this socket: a BIND to an owner that has already ended starts anew.
    fn ended(&self, end_ns: u64) -> Option<u64> {
        happened(end_ns).map(|end_ns| end_ns.max(self.facts.bound_ns))
    }

    /// When the request that the socket serves was over, by its own END or its session's, whichever counts.
    #[must_use]
    pub fn request_over_ns(&self) -> Option<u64> {
        self.since(Kind::OutlivedRequest)
            .or_else(|| self.since(Kind::SessionRemnant))
    }
}

/// How long a rule may run before it is broken.
const fn limit_ns(kind: Kind, timeouts: &Timeouts) -> u64 {
    match kind {
        Kind::OutlivedRequest
        | Kind::SessionRemnant
        | Kind::PeerClosed
        | Kind::DeadSocket
        | Kind::Unowned => timeouts.grace_ns,
        Kind::Idle => timeouts.idle_ns,
        Kind::OpenAtExit => 0,
    }
}

const fn happened(at_ns: u64) -> Option<u64> {
    if at_ns == 0 { None } else { Some(at_ns) }
}

/// Whether the socket is TCP.
#[must_use]
pub const fn is_tcp(facts: &Facts) -> bool {
    facts.protocol == IPPROTO_TCP
}

fn is_pooled(facts: &Facts) -> bool {
    facts.bound_ns != 0 && Role::from_u16(facts.role) == Some(Role::Pool)
}

/// Returns the two ends of the connection, when there ever was one or the socket listens.
#[must_use]
pub fn tuple(facts: &Facts) -> Option<Tuple> {
    if facts.local_port == 0 && facts.remote_port == 0 {
        return None;
    }
    Some(Tuple {
        local: SocketAddr::new(address(facts.family, facts.local), facts.local_port),
        remote: SocketAddr::new(address(facts.family, facts.remote), facts.remote_port),
    })
}

/// Returns an address as the kernel's records hold it.
pub(super) fn address(family: u16, bytes: [u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = bytes;
    if family == AF_INET {
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use tracer_abi::annotation::Owner;

    use super::*;

    pub(crate) const NO_ENDS: Ends = Ends {
        own_ns: 0,
        session_ns: 0,
    };

    const LIMITS: Timeouts = Timeouts {
        grace_ns: 10,
        idle_ns: 1000,
    };

    pub(crate) fn facts(id: u64) -> Facts {
        Facts {
            id,
            cookie: id + 1000,
            born_ns: 100,
            held_ns: 100,
            bound_ns: 0,
            peer_done_ns: 0,
            dead_ns: 0,
            owner: Owner::PRESENT,
            bytes_received: 0,
            bytes_acked: 0,
            opener: 42,
            flags: fact::HELD,
            family: AF_INET,
            protocol: IPPROTO_TCP,
            role: 0,
            local_port: 0,
            remote_port: 0,
            state: 0,
            label_len: 0,
            local: [0; 16],
            remote: [0; 16],
            comm: [0; 16],
        }
    }

    fn violation(facts: &Facts, ends: Ends, flags: u32, at_ns: u64) -> Option<(Kind, u64)> {
        let evidence = Evidence {
            facts,
            ends: &ends,
            flags,
            moved_ns: None,
            at_ns,
        };
        evidence.violation(&LIMITS).map(|o| (o.kind, o.since_ns))
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
            moved_ns: Some(120),
            at_ns: 1121,
        };
        assert_eq!(idle.violation(&LIMITS).map(|o| o.kind), Some(Kind::Idle));
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
                moved_ns: Some(100),
                at_ns,
            };
            evidence.deadline(&LIMITS)
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
            let evidence = Evidence { facts: &facts, ends: &ends, flags, moved_ns: None, at_ns };
            if let Some(violation) = evidence.violation(&LIMITS) {
                prop_assert!(violation.since_ns <= at_ns);
            }
        }
    }
}
