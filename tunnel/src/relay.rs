//! Joins a stream to what is behind this end: a socket, datagrams, or another stream.

pub mod datagrams;
pub mod splice;
pub(crate) mod streams;
