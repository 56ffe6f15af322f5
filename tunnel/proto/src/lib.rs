//! The pure core of the tunnel: what a link says and what its two ends may do.
//!
//! Nothing here has a socket, a task, a clock or `unsafe`: time is an argument, and bytes come and
//! go as values. The crate `tunnel` is the shell that drives it.
//!
//! | module | what it decides |
//! |---|---|
//! | [`wire`] | how frames, messages, datagrams and the handshake look in bytes |
//! | [`mux`] | what the two ends of a session do: many streams over one link, in two dialects |
//! | [`target`] | where a stream goes, as it is written |
//! | [`listen`] | where a public port listens, as it is written |
//! | [`policy`] | what an agent may dial |
//! | [`replicas`] | which of several agents of one name takes a stream |
//! | [`socks5`] | the messages of SOCKS5 |
//! | [`login_guard`] | how many wrong secrets an address may try |
//! | [`token_bucket`] | how much may be asked in a time |

#![forbid(unsafe_code)]

use std::time::Duration;

pub mod listen;
pub mod login_guard;
pub mod mux;
pub mod policy;
pub mod replicas;
pub mod shrink;
pub mod socks5;
pub mod target;
pub mod token_bucket;
pub mod wire;

/// Time since an origin that the caller chose.
pub type Time = Duration;
