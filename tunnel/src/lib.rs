//! A reverse tunnel over one WebSocket whose every socket the kernel can vouch for. The protocol is
//! in the crate `tunnel-proto`, which is re-exported here. It has no sockets, no tasks, no clock
//! and no `unsafe`. The I/O is in this crate, in layers that import downwards only:
//!
//! | layer | what it owns |
//! |---|---|
//! | [`server`], [`agent`], [`admin`] | the two ends, and their admin port |
//! | [`uplink`], [`relay`] | connecting to a server and reconnecting; joining streams and sockets |
//! | [`session`] | the streams of one link |
//! | [`login`], [`http`] | users and their secrets; what HTTP ports check of a request |
//! | [`metrics`] | Prometheus metrics |
//! | [`io`] | sockets, TLS, tasks, files, time: the only code that touches the system |
//!
//! # Embedding
//! [`Server`] and [`Agent`] run inside any tokio program. A control plane can reach the targets of
//! an agent as if they were on its own network. [`Dialer::dial`] returns a [`Stream`], which is
//! `AsyncRead` and `AsyncWrite`. [`Dialer::client`] returns hyper's HTTP client over such streams.
//! `examples/control_plane.rs` and `examples/call_through_agent.rs` are complete programs.
//!
//! ```no_run
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//! use tunnel::{Server, server, io::token::Token};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let token = Token::new(&std::env::var("TUNNEL_TOKEN")?, "TUNNEL_TOKEN")?;
//! let server = Server::start(server::Config::new("0.0.0.0:8123".parse()?, token)).await?;
//!
//! // Later an agent called "home" has connected, and it allows 127.0.0.1:9000.
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
pub mod http;
pub mod io;
pub mod login;
pub mod metrics;
pub mod relay;
pub mod server;
pub mod session;
pub mod uplink;

pub use tunnel_proto::{Time, listen, mux, policy, replicas, target, wire};

pub use crate::agent::Agent;
pub use crate::server::{Connector, DialError, Dialer, Server};
pub use crate::session::Stream;
