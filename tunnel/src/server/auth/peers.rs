//! The other servers, as they are configured.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tunnel_proto::wire::handshake;

use crate::io::tls;
use crate::io::token::Token;
use crate::uplink::{ServerUrl, ServerUrlError};

/// What a server needs to know to have peers.
#[derive(Clone, Debug)]
pub struct Peers {
    /// The name by which the peers know this server.
    pub id: String,
    /// The secret that all of them share. It must not be that of the agents.
    pub token: Token,
    /// The other servers.
    pub table: Vec<Peer>,
    /// Which of them are trusted, and who this server is to them, where they are reached by TLS.
    pub tls: tls::Client,
    /// Sessions of agents that are remembered of each peer.
    pub clients_max: usize,
    /// How long connecting to a peer and the handshake may take together.
    pub connect_timeout: Duration,
    /// The first and the longest wait between attempts to connect.
    pub backoff: (Duration, Duration),
}

impl Peers {
    /// Returns the defaults around what has none.
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
    /// It has not two parts, or the first is not a name.
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
