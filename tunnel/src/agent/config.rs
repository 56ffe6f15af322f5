//! What an agent needs to know.

use std::path::PathBuf;
use std::time::Duration;

use tokio_tungstenite::tungstenite::http::HeaderName;
use tunnel_proto::mux;
use tunnel_proto::policy::Policy;
use tunnel_proto::wire::Dialect;

use crate::io::tls;
use crate::io::token::Token;
use crate::relay::{datagrams, splice};
use crate::session::link;
use crate::uplink::ServerUrl;
use crate::uplink::proxy::Proxy;

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server's `wss://HOST:PORT/connect`, or `ws://HOST:PORT/connect` without TLS.
    pub server: ServerUrl,
    /// Which servers are trusted, and who this agent is to them. Means nothing without TLS.
    pub tls: tls::Client,
    /// The name under which visitors ask for this agent.
    pub name: String,
    /// The proxy through which the server is reached. Targets are not.
    pub proxy: Option<Proxy>,
    /// What may be dialed.
    pub policy: Policy,
    /// The secret that the server knows.
    pub token: Token,
    /// Set when the secret is an invitation's: with the first handshake it is exchanged for one that is this agent's own, which is kept
    /// in the file, if one is named, for later runs.
    pub invited: Option<Invited>,
    /// How long resolving and dialing a target may take together.
    pub dial_timeout: Duration,
    /// How long connecting to the server and its handshake may take together.
    pub connect_timeout: Duration,
    /// Links to the server at once, 1 to [`LINKS_MAX`](tunnel_proto::wire::handshake::LINKS_MAX); what lies outside counts as the nearer end. Streams are spread over
    /// them, and a link that dies costs its own only.
    pub links: u8,
    /// The first and the longest wait between attempts to connect.
    pub backoff: (Duration, Duration),
    /// How the server talks.
    pub dialect: Dialect,
    /// The request header that carries the secret instead of `Authorization: Bearer`.
    pub token_header: Option<HeaderName>,
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
    /// Returns the defaults around what has none.
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
            dial_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            links: 1,
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            dialect: Dialect::Native,
            token_header: None,
            mux: mux::native::Config::default(),
            remotedialer_mux: mux::remotedialer::Config::default(),
            link: link::Config::default(),
            splice: splice::Config::default(),
            datagrams: datagrams::Config::default(),
        }
    }
}

/// What becomes of an invitation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invited {
    /// The file that the agent's own token is written to, readable by its owner only.
    pub keep: Option<PathBuf>,
    /// What an earlier run kept there. It is tried first, since an invitation is good once.
    pub kept: Option<Token>,
}
