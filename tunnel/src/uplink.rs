//! How a link to a server is made and kept up, by an agent and by a peer.

pub mod backoff;
pub(crate) mod dial;
mod join;
pub(crate) mod keyring;
pub mod proxy;
pub(crate) mod reconnect;
mod url;

pub use join::{Join, JoinError};
pub use url::{ServerUrl, ServerUrlError};
