//! The configuration of a server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tunnel_proto::mux;

use crate::admin;
use crate::io::tls;
use crate::metrics::Compat;
use crate::relay::{datagrams, splice};
use crate::server::auth::access::Access;
use crate::server::auth::handshake::Remotedialer;
use crate::server::auth::peers::Peers;
use crate::server::limits::Limits;
use crate::session::link;

pub mod forward;
pub mod http;
pub mod port;

pub use forward::Forward;
pub use http::{HealthPath, HttpPort, HttpSocket};
pub use port::{Port, PortsError};

/// The configuration of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where agents connect, and HTTP visitors if one of `ports` shares it.
    pub listen: SocketAddr,
    /// TLS of that port; without it the port speaks plain HTTP.
    pub tls: Option<tls::Server>,
    /// How long a TLS handshake may take there.
    pub tls_handshake_timeout: Duration,
    /// Static forwards.
    pub forwards: Vec<Forward>,
    /// More public ports: SOCKS5, HTTP CONNECT and HTTP.
    pub ports: Vec<Port>,
    /// Where the front and the HTTP ports answer health checks, to everybody.
    pub health_path: Option<HealthPath>,
    /// The admin port: counters, health, sessions.
    pub admin: Option<admin::Config>,
    /// A second set of metrics under the names of another program.
    pub compat_metrics: Option<Compat>,
    /// Which agents may connect, and what visitors may ask of each.
    pub access: Access,
    /// The file with the agents that joined by invitation. Without it they are forgotten when the
    /// server ends.
    pub roster: Option<PathBuf>,
    /// The most connections of visitors at once at each port. Further ones wait in the kernel's
    /// backlog; at the front their requests are refused.
    pub connections_max: usize,
    /// The most connections to the front at once that are not let in yet: those of agents and peers
    /// until their link is up, and those of visitors until their first request is served. When more
    /// come, the oldest that have had a second make room.
    pub handshakes_max: usize,
    /// The most links of agents at once.
    pub sessions_max: usize,
    /// The most instances of one agent at once, each with its links. See [`Replicas`].
    ///
    /// [`Replicas`]: tunnel_proto::replicas::Replicas
    pub replicas_max: usize,
    /// The limits of each agent.
    pub limits: Limits,
    /// How long the head of a request may take from its first byte, and the first head from the
    /// start of the connection. `None` means no limit.
    pub header_timeout: Option<Duration>,
    /// How long a visitor's connection to the HTTP front may be idle between two requests. `None`
    /// means no limit.
    pub keep_alive_timeout: Option<Duration>,
    /// How long a target may take to begin its response after the end of the request. A request
    /// that has not ended may stand still for as long. `None` means no limit.
    pub response_timeout: Option<Duration>,
    /// The longest head of a request or a response in bytes, at least 8192.
    pub head_max: usize,
    /// The most header lines of a request or a response.
    pub header_lines_max: usize,
    /// How long a visitor of the HTTP front that has finished its direction waits for more of the
    /// response.
    pub visitor_linger: Duration,
    /// Whether clients of remotedialer's dialect are accepted, and how they authenticate.
    pub remotedialer: Option<Remotedialer>,
    /// The other servers.
    pub peers: Option<Arc<Peers>>,
    /// Bounds of each session.
    pub mux: mux::native::Config,
    /// Bounds of each session in remotedialer's dialect.
    pub remotedialer_mux: mux::remotedialer::Config,
    /// Bounds of each link.
    pub link: link::Config,
    /// Bounds of each splice.
    pub splice: splice::Config,
    /// Bounds of the flows of each UDP forward.
    pub datagrams: datagrams::Config,
}

impl Config {
    /// Returns a configuration with defaults for everything else.
    #[must_use]
    pub fn new(listen: SocketAddr, access: impl Into<Access>) -> Self {
        Self {
            listen,
            tls: None,
            tls_handshake_timeout: Duration::from_secs(10),
            forwards: Vec::new(),
            ports: Vec::new(),
            health_path: None,
            admin: None,
            compat_metrics: None,
            access: access.into(),
            roster: None,
            connections_max: 16_384,
            handshakes_max: 1024,
            sessions_max: 4096,
            replicas_max: 16,
            limits: Limits::default(),
            header_timeout: Some(Duration::from_secs(30)),
            keep_alive_timeout: Some(Duration::from_secs(75)),
            response_timeout: Some(Duration::from_secs(60)),
            head_max: 64 * 1024,
            header_lines_max: 256,
            visitor_linger: Duration::from_millis(500),
            remotedialer: None,
            peers: None,
            mux: mux::native::Config::default(),
            remotedialer_mux: mux::remotedialer::Config::default(),
            link: link::Config::default(),
            splice: splice::Config::default(),
            datagrams: datagrams::Config::default(),
        }
    }

    /// Returns the forwards, then the other ports.
    #[must_use]
    pub fn all_ports(&self) -> Vec<Port> {
        let forwards = self.forwards.iter().cloned().map(Port::Forward);
        forwards.chain(self.ports.iter().cloned()).collect()
    }
}
