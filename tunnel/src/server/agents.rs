//! The connected agents and peers, and their sessions.

pub(crate) mod entry;
pub(crate) mod registry;
