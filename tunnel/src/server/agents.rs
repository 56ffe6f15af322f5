//! The connected agents and peers, and their links.

pub(crate) mod links;
pub(crate) mod registry;
