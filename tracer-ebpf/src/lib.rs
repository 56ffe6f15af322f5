//! What the eBPF programs and user space share: the annotation channel that joins a socket to the
//! request it serves, and the layouts of the records that the kernel side hands over.
//!
//! The crate is `no_std` and has no code that needs a kernel. A program that only wants to annotate
//! its sockets enables the feature `annotate` and calls [`annotation::bind`] and
//! [`annotation::end`].

#![no_std]

#[cfg(feature = "annotate")]
extern crate std;

pub mod annotation;
pub mod counter;
pub mod facts;
pub mod histogram;
mod layout;
pub mod limits;
pub mod offsets;
pub mod pinned;
pub mod record;
pub mod release_key;
pub mod scope;
pub mod sighting;
