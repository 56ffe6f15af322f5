//! What one walk of the witness adds up to.

use std::collections::BTreeMap;

use tracer_abi::facts::{AF_INET, AF_INET6, IPPROTO_MPTCP};

use crate::verdict::Holder;

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
}

/// Returns what a report calls sockets of a family (linux/socket.h), or of a protocol of the
/// internet families.
pub(super) const fn sort(family: u16, protocol: u16) -> &'static str {
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
