//! Who is let in, and what each may do.

pub mod access;
pub(crate) mod admission;
pub mod handshake;
pub mod peers;
pub mod roster;
