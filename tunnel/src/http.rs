//! What the HTTP ports read from the headers of a request before they serve it.

pub(crate) mod authorization;
pub mod forwarded;
pub(crate) mod host;
pub mod origin;
