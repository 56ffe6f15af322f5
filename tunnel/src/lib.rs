//! A reverse tunnel over one WebSocket whose every socket the kernel can vouch for.
//!
//! The core ([`mux`], [`dialect`], [`datagram`], [`target`]) decides: it has no socket, no task, no clock and no `unsafe`. The shell around
//! it does: [`link`] drives one WebSocket, [`splice`] joins a stream to a socket, [`flow`] to datagrams, [`socket`] is the one door through
//! which every socket is made and annotated, [`scope`] owns every task. [`server`] and [`agent`] are the two ends.
//!
//! Without the feature `runtime` only the core is built.

pub mod datagram;
pub mod dialect;
pub mod mux;
pub mod target;

#[cfg(feature = "runtime")]
pub mod agent;
#[cfg(feature = "runtime")]
mod chance;
#[cfg(feature = "runtime")]
pub mod clock;
#[cfg(feature = "runtime")]
pub mod flow;
#[cfg(feature = "runtime")]
pub mod link;
#[cfg(feature = "runtime")]
pub mod metrics;
#[cfg(feature = "runtime")]
mod rate;
#[cfg(feature = "runtime")]
pub mod scope;
#[cfg(feature = "runtime")]
pub mod server;
#[cfg(feature = "runtime")]
pub mod session;
#[cfg(feature = "runtime")]
pub mod socket;
#[cfg(feature = "runtime")]
pub mod splice;
#[cfg(feature = "runtime")]
mod throttle;
#[cfg(feature = "runtime")]
pub mod tls;
#[cfg(feature = "runtime")]
pub mod token;
