//! The rules: what a socket must not do, and for how long it may.

use tracer_abi::annotation::Role;
use tracer_abi::facts::{Ends, Facts, fact};
use tracer_abi::record::{ANNOTATES, BY_EXIT};

use super::piles::PileLimits;
use super::tcp::is_tcp;
use crate::verdict::Kind;

/// How long a socket may break a rule before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the end of the request, or of the peer, to the release, in nanoseconds.
    pub grace_ns: u64,
    /// Without progress although bytes wait, in nanoseconds.
    pub stuck_ns: u64,
    /// Without a byte in either direction, in nanoseconds.
    pub idle_ns: u64,
    /// When connections that are passed over and kept count.
    pub piles: PileLimits,
}

impl Timeouts {
    /// No rule is ever broken for too long.
    pub const NEVER: Self = Self {
        grace_ns: u64::MAX,
        stuck_ns: u64::MAX,
        idle_ns: u64::MAX,
        piles: PileLimits {
            after_ns: u64::MAX,
            growth: usize::MAX,
        },
    };
}

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// The rule.
    pub(super) kind: Kind,
    /// When its clock started: END, CLOSE_WAIT, CLOSE, opening, last byte or release.
    pub(super) since_ns: u64,
}

/// What is known of an open socket by comparing walks; nothing of one that is released.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sampled {
    /// When the byte counters last changed, for sockets that have any.
    pub(super) last_byte_ns: Option<u64>,
    /// When it joined a pile that grew, if it did.
    pub(super) piled_ns: Option<u64>,
    /// Since when bytes wait, or a connect, without progress.
    pub(super) stalled_ns: Option<u64>,
}

/// The evidence that the rules are tried on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence<'a> {
    /// What the kernel keeps.
    pub(super) facts: &'a Facts,
    /// Ends of the current owner.
    pub(super) ends: &'a Ends,
    /// [`ANNOTATES`] and [`BY_EXIT`].
    pub(super) flags: u32,
    /// What only walks tell.
    pub(super) sampled: Sampled,
    /// When the rules are tried: now for an open socket, else its release.
    pub(super) at_ns: u64,
}

impl Evidence<'_> {
    /// Tries the rules in order and returns the first that is broken.
    pub(super) fn violation(&self, timeouts: &Timeouts) -> Option<Violation> {
        Kind::ALL.into_iter().find_map(|kind| {
            let since_ns = self.since(kind)?;
            let late_ns = since_ns.saturating_add(timeout_ns(kind, timeouts));
            (kind == Kind::OpenAtExit || self.at_ns > late_ns)
                .then_some(Violation { kind, since_ns })
        })
    }

    /// Returns the rule that is broken next if nothing changes, and the last moment at which it is
    /// not yet. What only walks tell has no such moment: every byte restarts its clock.
    pub(super) fn deadline(&self, timeouts: &Timeouts) -> Option<(Kind, u64)> {
        Kind::ALL
            .into_iter()
            .filter(|kind| {
                !matches!(
                    kind,
                    Kind::PileUp | Kind::Stuck | Kind::Idle | Kind::OpenAtExit
                )
            })
            .filter_map(|kind| {
                Some((
                    kind,
                    self.since(kind)?.saturating_add(timeout_ns(kind, timeouts)),
                ))
            })
            .filter(|(_, at_ns)| *at_ns >= self.at_ns)
            .min_by_key(|(_, at_ns)| *at_ns)
    }

    /// Returns when the clock of a rule started; `None` when the rule does not apply.
    fn since(&self, kind: Kind) -> Option<u64> {
        let facts = self.facts;
        // A pooled connection serves no request: only piles and idleness apply.
        if !matches!(kind, Kind::Idle | Kind::PileUp) && is_pooled(facts) {
            return None;
        }
        match kind {
            Kind::OutlivedRequest => self.ended(self.ends.own_ns),
            Kind::SessionRemnant => self.ended(self.ends.session_ns),
            // In a listener's backlog there is no descriptor to release yet.
            Kind::PeerClosed => nonzero(facts.peer_done_ns).map(|at_ns| at_ns.max(facts.held_ns)),
            Kind::DeadSocket => nonzero(facts.dead_ns).map(|at_ns| at_ns.max(facts.held_ns)),
            Kind::Unowned => (is_tcp(facts) && facts.bound_ns == 0 && self.flags & ANNOTATES != 0)
                .then_some(facts.held_ns),
            Kind::PileUp => self.sampled.piled_ns,
            Kind::Stuck => self.sampled.stalled_ns,
            Kind::Idle => self
                .sampled
                .last_byte_ns
                .filter(|_| facts.flags & fact::LISTENER == 0),
            // A server ends with its listeners open.
            Kind::OpenAtExit => {
                (self.flags & BY_EXIT != 0 && !is_listener(facts)).then_some(self.at_ns)
            }
        }
    }

    /// Returns when the request was over for this socket. A BIND to an owner that has already ended
    /// restarts the clock.
    fn ended(&self, end_ns: u64) -> Option<u64> {
        nonzero(end_ns).map(|end_ns| end_ns.max(self.facts.bound_ns))
    }

    /// Returns when the request that the socket serves was over, by its own END or its session's.
    pub(super) fn request_over_ns(&self) -> Option<u64> {
        self.since(Kind::OutlivedRequest)
            .or_else(|| self.since(Kind::SessionRemnant))
    }
}

/// Returns how long a rule's clock may run before the rule is broken.
const fn timeout_ns(kind: Kind, timeouts: &Timeouts) -> u64 {
    match kind {
        Kind::OutlivedRequest
        | Kind::SessionRemnant
        | Kind::PeerClosed
        | Kind::DeadSocket
        | Kind::Unowned => timeouts.grace_ns,
        Kind::Stuck => timeouts.stuck_ns,
        Kind::Idle => timeouts.idle_ns,
        Kind::PileUp | Kind::OpenAtExit => 0,
    }
}

const fn nonzero(at_ns: u64) -> Option<u64> {
    if at_ns == 0 { None } else { Some(at_ns) }
}

fn is_listener(facts: &Facts) -> bool {
    facts.flags & fact::LISTENER != 0
        || facts.bound_ns != 0 && Role::from_u16(facts.role) == Some(Role::Listener)
}

fn is_pooled(facts: &Facts) -> bool {
    facts.bound_ns != 0 && Role::from_u16(facts.role) == Some(Role::Pool)
}

#[cfg(test)]
mod tests;
