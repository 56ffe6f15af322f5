//! What one walk of the witness adds up to.

use std::collections::{BTreeMap, HashSet};

use tracer_abi::facts::{AF_INET, AF_INET6, IPPROTO_MPTCP};
use tracer_abi::sighting::Sighting;

use crate::verdict::Holder;

/// How many sockets that no rule judges are told apart in a walk.
const UNJUDGED_MAX: usize = 1 << 17;

/// The result of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Sockets met, of the families that have create and release hooks.
    pub open: u64,
    /// Sockets met that TCP does not call the programs for: only walks tell what it does to them.
    pub unwatched: u64,
    /// Sockets that the ledger has open and the walk did not meet.
    pub only_in_ledger: u64,
    /// Sockets that the walk met and no record announced.
    pub only_in_kernel: u64,
    /// Sockets that have broken a rule for less than their grace.
    pub waiting: u64,
    /// Whether connections became members of a pile that grew: another walk finds who holds them.
    pub has_piled_up: bool,
    /// Internet sockets from outside the audit that the audited processes hold; a bounded list.
    pub foreign_sockets: Vec<ForeignSocket>,
    /// How many open sockets of each sort no rule judges.
    pub unjudged: BTreeMap<&'static str, u64>,
    /// The cookies of those that were counted: a socket may have several descriptors.
    pub(crate) unjudged_seen: HashSet<u64>,
}

impl Walk {
    /// Counts a socket that no rule judges, once. Further descriptors of it count again when there
    /// are more such sockets than [`UNJUDGED_MAX`].
    pub(super) fn add_unjudged(&mut self, sighting: &Sighting) {
        if self.unjudged_seen.len() >= UNJUDGED_MAX || self.unjudged_seen.insert(sighting.cookie) {
            let sort = sort(sighting.family, sighting.protocol);
            *self.unjudged.entry(sort).or_default() += 1;
        }
    }
}

/// Returns what a report calls sockets of a family (linux/socket.h), or of a protocol of the
/// internet families.
const fn sort(family: u16, protocol: u16) -> &'static str {
    match (family, protocol) {
        (1, _) => "unix",
        (AF_INET | AF_INET6, IPPROTO_MPTCP) => "mptcp",
        (AF_INET | AF_INET6, 132) => "sctp",
        (AF_INET | AF_INET6, _) => "raw",
        (16, _) => "netlink",
        (17, _) => "packet",
        (29, _) => "can",
        (31, _) => "bluetooth",
        (38, _) => "alg",
        (40, _) => "vsock",
        (44, _) => "xdp",
        _ => "other",
    }
}

/// A descriptor of an internet socket that is not part of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignSocket {
    /// Who holds it.
    pub holder: Holder,
    /// The socket's local port; 0 if it has none yet.
    pub local_port: u16,
}
