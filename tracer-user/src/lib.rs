//! Watches a program's sockets from the kernel and says with evidence whether each one closed.
//!
//! The pure core ([`ledger`], [`verdict`], [`news`], [`counters`], [`btf`], [`report`]) has no clock, no I/O and no task;
//! it is all there is without the feature `runtime`.

pub mod btf;
pub mod counters;
pub mod ledger;
pub mod news;
pub mod report;
pub mod verdict;

#[cfg(feature = "runtime")]
pub mod audit;
#[cfg(feature = "runtime")]
pub mod cgroup;
#[cfg(feature = "runtime")]
pub mod clock;
#[cfg(feature = "runtime")]
pub mod doctor;
#[cfg(feature = "runtime")]
pub mod enter;
#[cfg(feature = "runtime")]
pub mod metrics;
#[cfg(feature = "runtime")]
pub mod probes;
#[cfg(feature = "runtime")]
pub mod run;
#[cfg(feature = "runtime")]
pub mod selftest;
#[cfg(feature = "runtime")]
pub mod stacks;
#[cfg(feature = "runtime")]
mod terminal;
#[cfg(feature = "runtime")]
pub mod witness;
