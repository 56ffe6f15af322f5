//! Authentication of agents and peers, and what each agent may be asked for.

pub mod access;
pub(crate) mod admission;
pub mod handshake;
pub mod peers;
pub mod roster;
