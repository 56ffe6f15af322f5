//! A reverse tunnel over one WebSocket whose every socket the kernel can vouch for.
//!
//! The core (crate `tunnel-proto`, re-exported here) decides: it has no socket, no task, no clock and
//! no `unsafe`. The shell around it does, in layers that import downwards only:
//!
//! | layer | what it owns |
//! |---|---|
//! | [`server`], [`agent`], [`admin`] | the two ends, and the port that shows what they do |
//! | `uplink`, [`relay`] | how a link to a server is made and kept; how streams are joined to sockets |
//! | [`session`] | the streams of one link |
//! | [`metrics`] | what is counted |
//! | [`io`] | sockets, TLS, tasks, files, time: the only code that touches the system |
//!
//! # In a program of one's own
//!
//! [`Server`] and [`Agent`] run inside of any tokio program. A control plane reaches what an agent may dial as if it were on its own network:
//! [`Dialer::dial`] gives a [`Stream`], which is `AsyncRead` and `AsyncWrite`; [`Dialer::client`] gives hyper's HTTP client over such streams.
//! `examples/control_plane.rs` and `examples/call_through_agent.rs` are whole programs.
//!
//! ```no_run
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//! use tunnel::{Server, server, io::token::Token};
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

pub mod admin;
pub mod agent;
pub mod io;
pub mod metrics;
pub mod relay;
pub mod server;
pub mod session;
pub mod uplink;

pub use tunnel_proto::{Time, credentials, listen, mux, policy, target, wire};

pub use crate::agent::Agent;
pub use crate::server::{Connector, DialError, Dialer, Server};
pub use crate::session::Stream;
