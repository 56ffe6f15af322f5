//! For programs that embed the server: connections to whatever an agent reaches, without a socket at this end.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

mod connector;

use tunnel_proto::mux::{OpenError, Reason};
use tunnel_proto::target::{Target, TargetError};

pub use crate::server::dialer::connector::{
    ConnectError, Connecting, Connector, POOL_IDLE_MAX, POOL_IDLE_TIMEOUT,
};
use crate::server::open::{Entrypoint, OpenRefused, Visit};
use crate::server::shared::Shared;
use crate::session::Stream;

/// Dials through one agent of a server. Cloning it is cheap.
///
/// It knows the agent by its name and looks for it at each dial, here and at the server's peers, so it outlives every link and may
/// be made before the agent has ever been connected. It does not keep the server running.
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
    /// The agent is connected neither here nor to a peer.
    #[error("agent {0} is not connected; it may be on its way back")]
    NotConnected(String),
    /// The server's access table gives the agent no right to serve the target.
    #[error("agent {agent} has no right to serve {target}; the server's access table decides")]
    NoRight {
        /// The agent.
        agent: String,
        /// What it was to dial.
        target: Target,
    },
    /// [`Limits::opens_per_second`](crate::server::Limits::opens_per_second) are asked of the agent already.
    #[error("more streams a second are asked of agent {0} than may be; try again in a moment")]
    TooOften(String),
    /// The agent is connected, and its session takes no stream.
    #[error("agent {agent} takes no stream: {error}")]
    NotOpened {
        /// The agent.
        agent: String,
        /// Why; never [`OpenError::Refused`].
        error: OpenError,
    },
    /// The agent answered that there is no connection to the target.
    #[error("agent {agent} has no connection to {target}: {reason}")]
    Refused {
        /// The agent.
        agent: String,
        /// What it was to dial.
        target: Target,
        /// What stood against it.
        reason: Reason,
    },
}

impl From<Infallible> for DialError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl DialError {
    /// Returns the reason, if it is one of the mux: it is none when the target is no target or the agent is not connected.
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

    /// Whether the agent is connected now, here or to a peer.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.registry.find(&self.agent).is_some()
    }

    /// Has the agent connect to `target`, a [`Target`] or a text as `tcp/HOST:PORT`, and waits for its answer, at most for
    /// [`Config::open_timeout`](tunnel_proto::mux::native::Config::open_timeout). The agent's policy decides what it dials. Dropping the future gives up.
    ///
    /// remotedialer's dialect has no answer: over it, and over peers, a dial succeeds at once, and a refusal is the first error of the stream.
    ///
    /// A stream to a `udp` target carries datagrams as [`tunnel_proto::wire::datagram`] says.
    ///
    /// # Errors
    ///
    /// [`DialError`]; the next dial may succeed.
    pub async fn dial<T>(&self, target: T) -> Result<Stream, DialError>
    where
        T: TryInto<Target, Error: Into<DialError>>,
    {
        let target = target.try_into().map_err(Into::into)?;
        let failed = |refused| self.failed(refused, &target);
        let visit = Visit {
            entrypoint: Entrypoint::Program,
            agent: &self.agent,
            target: &target,
        };
        let (_, opening) = self.shared.open(visit).map_err(failed)?;
        let stream = self.shared.accepted(opening).await.map_err(failed)?;
        Ok(stream.into_connection())
    }

    fn failed(&self, refused: OpenRefused, target: &Target) -> DialError {
        let (agent, target) = (self.agent.to_string(), target.clone());
        match refused {
            OpenRefused::NoAgent => DialError::NotConnected(agent),
            OpenRefused::NoRight => DialError::NoRight { agent, target },
            OpenRefused::Often => DialError::TooOften(agent),
            OpenRefused::Open(OpenError::Refused(reason)) => DialError::Refused {
                agent,
                target,
                reason,
            },
            OpenRefused::Open(error) => DialError::NotOpened { agent, error },
        }
    }
}
