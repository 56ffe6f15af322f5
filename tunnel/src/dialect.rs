//! What frames look like in bytes. The dialect of a link is chosen at its handshake.

pub mod native;
