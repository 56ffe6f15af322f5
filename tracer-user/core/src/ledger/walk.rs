//! What one walk of the witness adds up to.

use crate::verdict::Holder;

/// The result of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Sockets met, of the families that have create and release hooks.
    pub open: u64,
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
}

/// A descriptor of an internet socket that is not part of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignSocket {
    /// Who holds it.
    pub holder: Holder,
    /// The socket's local port; 0 if it has none yet.
    pub local_port: u16,
}
