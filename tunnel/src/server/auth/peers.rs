//! The other servers, as they are configured.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tunnel_proto::wire::handshake;

use crate::io::tls;
use crate::io::token::Token;
use crate::uplink::{ServerUrl, ServerUrlError};

/// The configuration of a server's peers.
#[derive(Clone, Debug)]
pub struct Peers {
    /// The name by which the peers know this server.
    pub id: String,
    /// The token that all servers share. It must differ from the agents' tokens.
    /// [`Server::set_peer_token`](crate::server::Server::set_peer_token) replaces it.
    pub token: Token,
    /// The other servers.
    pub table: Vec<Peer>,
    /// TLS towards peers: which certificates are trusted, and which one this server shows.
    pub tls: tls::Client,
    /// The most sessions of agents that one peer may announce.
    pub clients_max: usize,
    /// How long connecting to a peer may take, handshake included.
    pub connect_timeout: Duration,
    /// The shortest and the longest wait between attempts to connect.
    pub backoff: (Duration, Duration),
}

impl Peers {
    /// Returns a configuration with defaults for everything else.
    #[must_use]
    pub fn new(id: String, token: Token, table: Vec<Peer>) -> Self {
        Self {
            id,
            token,
            table,
            tls: tls::Client::default(),
            clients_max: 16_384,
            connect_timeout: Duration::from_secs(10),
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
        }
    }

    /// Returns the names of all servers, this one included.
    pub(crate) fn names(&self) -> HashSet<String> {
        let table = self.table.iter().map(|peer| &peer.id);
        table.chain([&self.id]).cloned().collect()
    }
}

/// One other server: `ID=URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub id: String,
    /// Its `wss://HOST:PORT/connect` or `ws://HOST:PORT/connect`.
    pub url: ServerUrl,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.id, self.url)
    }
}

/// Why a text is not a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It does not have two parts, or the first is not a name.
    #[error("{0:?} is not a peer: write ID=URL, as east=ws://10.0.0.2:8123/connect")]
    Malformed(String),
    /// The URL is wrong.
    #[error(transparent)]
    Url(#[from] ServerUrlError),
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((id, url)) if handshake::is_name(id) => Ok(Self {
                id: id.to_owned(),
                url: url.parse()?,
            }),
            Some(_) | None => Err(PeerError::Malformed(text.to_owned())),
        }
    }
}
