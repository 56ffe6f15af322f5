//! The ledger: what is known of every socket of the audit, from the kernel's events and from the
//! witness's walks.
//!
//! An event goes in with [`Ledger::apply`]. A walk of the witness goes in with
//! [`Ledger::begin_walk`], [`Ledger::observe`] and [`Ledger::finish_walk`]. The kernel stamps all
//! that a verdict needs on the record itself. So a lost record costs a timestamp only: the next
//! walk corrects the ledger.

mod apply;
mod connections;
mod deadlines;
mod findings;
#[cfg(test)]
pub(crate) mod fixtures;
mod lifetime;
mod observe;
mod owners;
mod payload;
mod piles;
mod rules;
mod stall;
mod state;
mod tcp;
#[cfg(test)]
mod tests;
mod walk;

pub use connections::{OTHER, Tallies, Tally};
pub use findings::{Change, Findings};
pub use piles::{PileLimits, PileNote, PileSize, PileState};
pub use rules::Timeouts;
pub use state::{Counts, Ledger};
pub use tcp::tcp_state_name;
pub(crate) use tcp::{TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LISTEN, TCP_SYN_SENT, address};
pub use walk::{ForeignSocket, Walk};
