//! Static forwards, as they are configured.

use std::fmt;
use std::str::FromStr;

use tunnel_proto::listen::{Listen, ListenError};
use tunnel_proto::target::{Target, TargetError};
use tunnel_proto::wire::handshake;

/// `LISTEN=AGENT/TARGET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where it listens. A UDP target needs an IP address and port.
    pub listen: Listen,
    /// The agent's name.
    pub agent: String,
    /// What the agent dials.
    pub target: Target,
}

impl Forward {
    /// Returns `AGENT/TARGET`.
    #[must_use]
    pub fn destination(&self) -> String {
        format!("{}/{}", self.agent, self.target)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.listen, self.destination())
    }
}

/// Why a text is not a forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// It does not have the three parts.
    #[error(
        "{0:?} is not a forward: write LISTEN=AGENT/tcp/HOST:PORT, as \
         127.0.0.1:8080=web/tcp/127.0.0.1:9000, LISTEN=AGENT/udp/HOST:PORT or \
         LISTEN=AGENT/unix//PATH"
    )]
    Malformed(String),
    /// Nothing can listen there.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The target is wrong.
    #[error(transparent)]
    Target(#[from] TargetError),
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ForwardError::Malformed(text.to_owned());
        let (listen, destination) = text.split_once('=').ok_or_else(malformed)?;
        let (agent, target) = destination.split_once('/').ok_or_else(malformed)?;
        if !handshake::is_name(agent) {
            return Err(malformed());
        }
        Ok(Self {
            listen: listen.parse()?,
            agent: agent.to_owned(),
            target: target.parse()?,
        })
    }
}
