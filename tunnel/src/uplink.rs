//! Links to a server: an agent or a peer dials, authenticates and reconnects.

pub mod backoff;
pub(crate) mod dial;
mod headers;
mod join;
pub(crate) mod keyring;
pub mod proxy;
pub(crate) mod reconnect;
mod url;

pub use headers::{LinkHeaders, LinkHeadersError};
pub use join::{Join, JoinError};
pub use url::{ServerUrl, ServerUrlError};
