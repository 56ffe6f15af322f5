//! Static forwards: a public port whose every visitor is a stream to one target of one agent. UDP targets have UDP ports.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use super::listen::{Listen, ListenError};
use super::open::{Door, Visit};
use super::{Shared, handshake};
use crate::socket::{NOBODY, Role, Socket};
use crate::splice::splice;
use crate::target::{Target, TargetError};

/// `LISTEN=AGENT/TARGET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where visitors come in. A UDP target needs an address.
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
    /// It has not the three parts.
    #[error(
        "{0:?} is not a forward: write LISTEN=AGENT/tcp/HOST:PORT, as 127.0.0.1:8080=web/tcp/127.0.0.1:9000, LISTEN=AGENT/udp/HOST:PORT or LISTEN=AGENT/unix//PATH"
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

impl Forward {
    pub(super) fn visit(&self) -> Visit<'_> {
        Visit {
            door: Door::Port {
                kind: "forward",
                listen: &self.listen,
            },
            agent: &self.agent,
            target: &self.target,
        }
    }
}

/// Opens a stream for a visitor and hands both to the session, which owns the task from then on.
pub(super) fn take_visitor(
    shared: &Arc<Shared>,
    forward: &Forward,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    let peer = socket.peer();
    let Ok((route, opening)) = shared.open(forward.visit()) else {
        socket.bind(Role::Control, NOBODY, "visitor without an agent");
        socket.reset_on_release();
        return;
    };
    let owner = opening.owner();
    let label = format!("visitor {peer} -> {}", forward.destination());
    socket.bind(Role::Stream, owner, &label);
    let shared = Arc::clone(shared);
    let span = tracing::debug_span!(
        "stream",
        agent = forward.agent,
        session = owner.session,
        stream = owner.stream,
        target = %forward.target,
    );
    let serve = async move {
        let _permit = permit;
        let opened = tokio::select! {
            biased;
            opened = shared.accepted(opening) => opened,
            () = socket.hung_up() => return,
        };
        match opened {
            Ok(stream) => {
                let ending = splice(socket, stream, shared.config.splice).await;
                tracing::debug!(visitor = %peer, %ending, "visitor released");
            }
            Err(_) => socket.reset_on_release(),
        }
    };
    route.scope().spawn(serve.instrument(span));
}
