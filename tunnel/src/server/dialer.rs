//! Connections through an agent for programs that embed the server. They need no socket at this
//! end.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

mod connector;

use tunnel_proto::mux::{OpenError, Reason};
use tunnel_proto::target::{Target, TargetError};

pub use crate::server::dialer::connector::{
    ConnectError, Connecting, Connector, POOL_IDLE_MAX, POOL_IDLE_TIMEOUT,
};
use crate::server::open::{Entrypoint, OpenRefused, OpenRequest};
use crate::server::shared::Shared;
use crate::session::Stream;

/// Dials through one agent of a server. Cloning it is cheap.
///
/// It looks the agent up by name at each dial, on this server and its peers. So it outlives every
/// link, and it may be made before the agent has connected. It does not keep the server running.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
    agent: Arc<str>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

/// Why there is no stream to a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The text is not a target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The agent is connected neither to this server nor to a peer.
    #[error("agent {0} is not connected; it may be reconnecting")]
    NotConnected(String),
    /// The server's access table gives the agent no right to serve the target.
    #[error("agent {agent} has no right to serve {target}; the server's access table decides")]
    NoRight {
        /// The agent.
        agent: String,
        /// What it was to dial.
        target: Target,
    },
    /// The agent's [`Limits::opens_per_second`](crate::server::Limits::opens_per_second) is
    /// reached.
    #[error("the limit of streams per second of agent {0} is reached; try again in a moment")]
    TooOften(String),
    /// The agent is connected, but its session takes no stream.
    #[error("agent {agent} takes no stream: {error}")]
    NotOpened {
        /// The agent.
        agent: String,
        /// Why; never [`OpenError::Refused`].
        error: OpenError,
    },
    /// The agent could not connect to the target.
    #[error("agent {agent} has no connection to {target}: {reason}")]
    Refused {
        /// The agent.
        agent: String,
        /// What it was to dial.
        target: Target,
        /// The agent's reason.
        reason: Reason,
    },
}

impl From<Infallible> for DialError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl DialError {
    /// Returns the reason in terms of the mux. There is none if the target is malformed or the
    /// agent is not connected.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Target(_) | Self::NotConnected(_) => None,
            Self::NoRight { .. } => Some(Reason::Denied),
            Self::TooOften(_) => Some(Reason::Busy),
            Self::NotOpened { error, .. } => Some(OpenRefused::from(*error).reason()),
            Self::Refused { reason, .. } => Some(*reason),
        }
    }
}

impl Dialer {
    pub(crate) fn new(shared: Arc<Shared>, agent: &str) -> Self {
        let agent = Arc::from(agent);
        Self { shared, agent }
    }

    /// Returns the name of the agent.
    #[must_use]
    pub fn agent(&self) -> &str {
        &self.agent
    }

    /// Whether the agent is connected now, to this server or to a peer.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.registry.reaches(&self.agent)
    }

    /// Asks the agent to connect to `target`, a [`Target`] or a text like `tcp/HOST:PORT`, and
    /// waits for its answer. It waits at most for
    /// [`Config::open_timeout`](tunnel_proto::mux::native::Config::open_timeout). The agent dials
    /// only what its policy allows. Dropping the future cancels the dial.
    ///
    /// remotedialer's dialect has no such answer. With it, and through a peer, a dial succeeds at
    /// once, and a refusal is the first error of the stream.
    ///
    /// A stream to a `udp` target carries datagrams in the format of
    /// [`tunnel_proto::wire::datagram`].
    ///
    /// # Errors
    ///
    /// [`DialError`]. A later dial may succeed.
    pub async fn dial<T>(&self, target: T) -> Result<Stream, DialError>
    where
        T: TryInto<Target, Error: Into<DialError>>,
    {
        let target = target.try_into().map_err(Into::into)?;
        let failed = |refused| self.failed(refused, &target);
        let open_request = OpenRequest {
            entrypoint: Entrypoint::Program,
            user: None,
            agent: &self.agent,
            target: &target,
        };
        let opened = self.shared.open_stream(open_request, |_| {}).await;
        let (_, stream) = opened.map_err(failed)?;
        Ok(stream.into_connection())
    }

    fn failed(&self, refused: OpenRefused, target: &Target) -> DialError {
        let (agent, target) = (self.agent.to_string(), target.clone());
        match refused {
            OpenRefused::NoAgent => DialError::NotConnected(agent),
            OpenRefused::NoRight => DialError::NoRight { agent, target },
            OpenRefused::RateLimited => DialError::TooOften(agent),
            OpenRefused::Open(OpenError::Refused(reason)) => DialError::Refused {
                agent,
                target,
                reason,
            },
            OpenRefused::Open(error) => DialError::NotOpened { agent, error },
        }
    }
}
