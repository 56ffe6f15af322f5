//! The agents and peers that are here, and the links that they came by.

pub(crate) mod links;
pub(crate) mod registry;
