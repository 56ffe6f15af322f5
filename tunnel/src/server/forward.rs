//! Static forwards: a public port whose every visitor is a stream to one target of one agent. UDP targets have UDP ports.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::{NO_AGENT, Shared, flows, handshake, reason_of};
use crate::mux::Reason;
use crate::socket::{DatagramListener, Listener, NOBODY, Role, Socket};
use crate::splice::splice;
use crate::target::{Target, TargetError};

/// `LISTEN=AGENT/TARGET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The public address.
    pub listen: SocketAddr,
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
    /// LISTEN is not `IP:PORT`.
    #[error("{0:?} is not an address to listen on: write IP:PORT, an IPv6 address in brackets")]
    Listen(String),
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
            listen: listen
                .parse()
                .map_err(|_| ForwardError::Listen(listen.to_owned()))?,
            agent: agent.to_owned(),
            target: target.parse()?,
        })
    }
}

/// The public port of a forward.
pub(super) enum Port {
    Tcp(Listener),
    Udp(DatagramListener),
}

impl Port {
    pub(super) async fn listen(forward: &Forward) -> io::Result<Self> {
        let label = format!("forward to {}", forward.destination());
        match &forward.target {
            Target::Tcp(_) | Target::Unix(_) => Listener::listen(forward.listen, &label)
                .await
                .map(Self::Tcp),
            Target::Udp(_) => DatagramListener::listen(forward.listen, &label).map(Self::Udp),
        }
    }

    pub(super) const fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp(listener) => listener.address(),
            Self::Udp(listener) => listener.address(),
        }
    }

    pub(super) async fn serve(self, shared: Arc<Shared>, forward: Forward) {
        match self {
            Self::Tcp(listener) => serve(shared, listener, forward).await,
            Self::Udp(listener) => flows::serve(shared, listener, forward).await,
        }
    }
}

async fn serve(shared: Arc<Shared>, listener: Listener, forward: Forward) {
    let forward = Arc::new(forward);
    loop {
        let Ok(permit) = Arc::clone(&shared.connections).acquire_owned().await else {
            return;
        };
        let socket = listener.accept().await;
        take_visitor(&shared, &forward, socket, permit);
    }
}

/// Opens a stream for a visitor and hands both to the session, which owns the task from then on.
fn take_visitor(
    shared: &Arc<Shared>,
    forward: &Arc<Forward>,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    let peer = socket.peer();
    let refuse = |socket: Socket, reason: &str, why: &str| {
        shared.metrics.open_failed(reason);
        tracing::debug!(visitor = %peer, agent = forward.agent, why, "visitor refused");
        socket.bind(Role::Control, NOBODY, "visitor without an agent");
        socket.reset_on_release();
    };
    let Some(route) = shared.registry.find(&forward.agent) else {
        refuse(socket, NO_AGENT, "the agent is not connected");
        return;
    };
    if !shared.gate.access().allows_target(&forward.agent, &forward.target) {
        refuse(socket, Reason::Denied.name(), "the agent has no right to serve it");
        return;
    }
    let opening = match route.open(&forward.target) {
        Ok(opening) => opening,
        Err(error) => {
            refuse(socket, reason_of(error).name(), &error.to_string());
            return;
        }
    };
    let owner = opening.owner();
    let label = format!("visitor {peer} -> {}", forward.destination());
    socket.bind(Role::Stream, owner, &label);
    let shared = Arc::clone(shared);
    let forward = Arc::clone(forward);
    route.scope().spawn(async move {
        let _permit = permit;
        let opened = tokio::select! {
            biased;
            opened = opening.accepted() => opened,
            () = socket.hung_up() => return,
        };
        match opened {
            Ok(stream) => {
                let ending = splice(socket, stream, shared.config.splice).await;
                tracing::debug!(visitor = %peer, stream = owner.stream, %ending, "visitor released");
            }
            Err(error) => {
                shared.metrics.open_failed(reason_of(error).name());
                tracing::debug!(visitor = %peer, agent = forward.agent, target = %forward.target, %error, "visitor refused");
                socket.reset_on_release();
            }
        }
    });
}
