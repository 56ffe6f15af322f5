//! A reverse tunnel over one WebSocket whose every socket the kernel can vouch for.
//!
//! The core ([`mux`], [`dialect`], [`datagram`], [`target`]) decides: it has no socket, no task, no clock and no `unsafe`. The shell around
//! it does: [`link`] drives one WebSocket, [`splice`] joins a stream to a socket, [`flow`] to datagrams, [`socket`] is the one door through
//! which every socket is made and annotated, [`scope`] owns every task. [`server`] and [`agent`] are the two ends.
//!
//! Without the feature `runtime` only the core is built.
//!
//! # In a program of one's own
//!
//! [`Server`] and [`Agent`] run inside of any tokio program. A control plane reaches what an agent may dial as if it were on its own network:
//! [`Dialer::dial`] gives a [`Stream`], which is `AsyncRead` and `AsyncWrite`; [`Dialer::client`] gives hyper's HTTP client over such streams.
//! `examples/control_plane.rs` and `examples/call_through_agent.rs` are whole programs.
//!
//! ```no_run
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//! use tunnel::{Server, server, token::Token};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let token = Token::new(&std::env::var("TUNNEL_TOKEN")?, "TUNNEL_TOKEN")?;
//! let server = Server::start(server::Config::new("0.0.0.0:8123".parse()?, token)).await?;
//!
//! // Some time later an agent called "home" is connected, and allows 127.0.0.1:9000.
//! let mut stream = server.dialer("home").dial("tcp/127.0.0.1:9000").await?;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?;
//! let mut answer = Vec::new();
//! stream.read_to_end(&mut answer).await?;
//!
//! server.drain(std::time::Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```

pub mod datagram;
pub mod dialect;
pub mod mux;
pub mod target;

#[cfg(feature = "runtime")]
pub mod admin;
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

#[cfg(feature = "runtime")]
pub use crate::{
    agent::Agent,
    server::{Connector, DialError, Dialer, Server},
    session::Stream,
};
