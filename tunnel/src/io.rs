//! The only code that touches the system: time, tasks, randomness, sockets and TLS.

pub mod clock;
pub(crate) mod race;
pub(crate) mod random;
pub mod resolver;
pub mod scope;
pub mod socket;
pub mod tls;
pub mod token;
