//! The only code that touches the system: time, tasks, files, randomness, names, sockets and TLS.

pub mod clock;
pub mod files;
pub(crate) mod race;
pub(crate) mod random;
pub mod resolver;
pub mod scope;
pub mod socket;
pub mod tls;
pub mod token;
