//! The whole path with real sockets: visitor, server, link, agent, target.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests are the world outside of the tunnel, and a test that cannot go on has failed"
)]

mod access;
mod admin;
mod association;
mod bounds;
mod child;
mod embed;
mod endings;
mod examples;
mod exchange;
mod forward;
mod front;
mod http_connect;
mod http_port;
mod leaks;
mod limits;
mod link;
mod links;
mod logins;
mod logs;
mod metrics;
mod names;
mod options;
mod ports;
mod process;
mod promtool;
mod proxy;
mod reload;
mod remotedialer;
mod replicas;
mod rig;
mod session;
mod socks5;
mod switch;
mod timeouts;
mod tls;
mod udp;
mod unix;
mod uplink;
mod world;
