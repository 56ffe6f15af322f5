//! The configuration of an agent.

use std::path::PathBuf;
use std::time::Duration;

use tokio_tungstenite::tungstenite::http::HeaderName;
use tunnel_proto::mux;
use tunnel_proto::policy::Policy;
use tunnel_proto::wire::Dialect;

use crate::io::token::Token;
use crate::io::{resolver, tls};
use crate::relay::{datagrams, splice};
use crate::session::link;
use crate::uplink::proxy::Proxy;
use crate::uplink::{LinkHeaders, ServerUrl};

/// The configuration of an agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server's `wss://HOST:PORT/connect`, or `ws://HOST:PORT/connect` without TLS.
    pub server: ServerUrl,
    /// Which servers are trusted, and the certificate that this agent shows. It has no effect
    /// without TLS.
    pub tls: tls::Client,
    /// The name by which visitors reach this agent.
    pub name: String,
    /// The proxy for the connection to the server. It is not used for targets.
    pub proxy: Option<Proxy>,
    /// Which targets may be dialed.
    pub policy: Policy,
    /// The token that authenticates this agent to the server.
    pub token: Token,
    /// Set if the token is an invitation. The first handshake exchanges it for a token of this
    /// agent's own, which is kept in the file for later runs.
    pub invited: Option<Invited>,
    /// The files by which the names of targets are looked up.
    pub resolver: resolver::Files,
    /// How long resolving and dialing a target may take in total.
    pub dial_timeout: Duration,
    /// How long connecting to the server may take, handshake included.
    pub connect_timeout: Duration,
    /// Links to the server at once, clamped to 1 to
    /// [`LINKS_MAX`](tunnel_proto::wire::handshake::LINKS_MAX). Streams are spread over them. When
    /// a link dies, only its own streams end.
    pub links: u8,
    /// The shortest and the longest wait between attempts to connect.
    pub backoff: (Duration, Duration),
    /// The dialect of the server.
    pub dialect: Dialect,
    /// The request header that carries the token instead of `Authorization: Bearer`.
    pub token_header: Option<HeaderName>,
    /// Further headers of the handshake. If `Authorization` is among them and there is no
    /// [`token_header`](Self::token_header), the token is sent as `X-Tunnel-Token`.
    pub link_headers: LinkHeaders,
    /// Bounds of the session.
    pub mux: mux::native::Config,
    /// Bounds of the session in remotedialer's dialect.
    pub remotedialer_mux: mux::remotedialer::Config,
    /// Bounds of the link.
    pub link: link::Config,
    /// Bounds of each splice.
    pub splice: splice::Config,
    /// Bounds of each UDP flow.
    pub datagrams: datagrams::Config,
}

impl Config {
    /// Checks that streams can move.
    ///
    /// # Errors
    ///
    /// [`mux::ConfigError`] names the bound that is zero.
    pub fn check(&self) -> Result<(), mux::ConfigError> {
        self.mux.check()?;
        self.remotedialer_mux.check()
    }

    /// Returns a configuration with defaults for everything else.
    #[must_use]
    pub fn new(server: ServerUrl, name: String, policy: Policy, token: Token) -> Self {
        Self {
            server,
            tls: tls::Client::default(),
            name,
            proxy: None,
            policy,
            token,
            invited: None,
            resolver: resolver::Files::default(),
            dial_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            links: 1,
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            dialect: Dialect::Native,
            token_header: None,
            link_headers: LinkHeaders::default(),
            mux: mux::native::Config::default(),
            remotedialer_mux: mux::remotedialer::Config::default(),
            link: link::Config::default(),
            splice: splice::Config::default(),
            datagrams: datagrams::Config::default(),
        }
    }
}

/// How an invitation is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invited {
    /// The file for the agent's own token. Only its owner can read it.
    pub keep: Option<PathBuf>,
    /// The token that an earlier run stored there. It is tried first, because an invitation works
    /// only once.
    pub kept: Option<Token>,
}
