//! Opens a stream for a visitor, from whatever entrypoint it came.

use std::fmt;

use hyper::StatusCode;
use tunnel_proto::listen::Listen;
use tunnel_proto::mux::{OpenError, Reason};
use tunnel_proto::target::Target;

use crate::server::agents::registry::Route;
use crate::server::shared::Shared;
use crate::session::{Opening, Stream};

/// The response to a visitor that gets none from the target.
pub(crate) type HttpFailure = (StatusCode, String);

/// How a visitor came in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entrypoint<'a> {
    /// A public port besides the front.
    Port {
        /// `forward`, `socks5`, `connect` or `http`.
        kind: &'static str,
        /// Where it listens, as configured.
        listen: &'a Listen,
    },
    /// The program that embeds the server.
    Program,
    /// Another server, on behalf of its visitor.
    Peer,
}

impl fmt::Display for Entrypoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { kind, listen } => write!(f, "{kind} {listen}"),
            Self::Program => f.write_str("program"),
            Self::Peer => f.write_str("peer"),
        }
    }
}

/// What a visitor asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenRequest<'a> {
    pub(crate) entrypoint: Entrypoint<'a>,
    /// The user who logged in, where the port needs a login.
    pub(crate) user: Option<&'a str>,
    pub(crate) agent: &'a str,
    pub(crate) target: &'a Target,
}

/// Why a visitor gets no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenRefused {
    #[error("the agent is not connected")]
    NoAgent,
    #[error("the server grants no right to it")]
    NoRight,
    #[error("the agent's limit of streams per second is reached; try again in a moment")]
    RateLimited,
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl OpenRefused {
    /// Returns the reason that goes to a peer.
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::NoAgent | Self::Open(OpenError::SessionOver) => Reason::SessionOver,
            Self::NoRight => Reason::Denied,
            Self::Open(OpenError::Refused(reason)) => reason,
            Self::RateLimited | Self::Open(OpenError::Busy) => Reason::Busy,
            Self::Open(OpenError::Draining) => Reason::Draining,
            Self::Open(OpenError::TargetTooLong | OpenError::NoDatagrams) => Reason::Protocol,
        }
    }

    /// Returns the response to a visitor that speaks HTTP.
    pub(crate) fn failure(self, agent: &str, target: &Target) -> HttpFailure {
        match self {
            Self::NoAgent => {
                let why = format!("agent {agent} is not connected");
                return (StatusCode::SERVICE_UNAVAILABLE, why);
            }
            Self::NoRight => {
                let why = format!(
                    "agent {agent} may not be asked for {target} here; the server's configuration \
                     decides"
                );
                return (StatusCode::FORBIDDEN, why);
            }
            Self::RateLimited | Self::Open(_) => {}
        }
        match self.reason() {
            Reason::TimedOut => (
                StatusCode::GATEWAY_TIMEOUT,
                format!("agent {agent} could not dial {target} in time"),
            ),
            Reason::Denied => (
                StatusCode::BAD_GATEWAY,
                format!("agent {agent} does not allow {target}; its --allow decides"),
            ),
            Reason::Refused => (
                StatusCode::BAD_GATEWAY,
                format!("{target} refused the connection of agent {agent}"),
            ),
            Reason::Unreachable => (
                StatusCode::BAD_GATEWAY,
                format!("agent {agent} cannot reach {target}"),
            ),
            Reason::Unresolved => (
                StatusCode::BAD_GATEWAY,
                format!("agent {agent} cannot resolve {target}"),
            ),
            Reason::Busy | Reason::Draining | Reason::SessionOver | Reason::Replaced => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("agent {agent} takes no stream: {self}"),
            ),
            Reason::Done
            | Reason::Cancelled
            | Reason::Aborted
            | Reason::Protocol
            | Reason::Overrun => (
                StatusCode::BAD_GATEWAY,
                format!("agent {agent} gave up on {target}: {self}"),
            ),
        }
    }

    /// Returns the value of the label `reason`.
    const fn name(self) -> &'static str {
        match self {
            Self::NoAgent => "no agent",
            Self::NoRight => "no right",
            Self::RateLimited => "limit",
            Self::Open(_) => self.reason().name(),
        }
    }
}

impl Shared {
    /// Finds the route to the agent and starts opening a stream. Every visitor's stream begins
    /// here, so access rights and rate limits are enforced here. Rights are checked before the
    /// route is looked up, and the rate afterwards.
    ///
    /// # Errors
    ///
    /// [`OpenRefused`], which is counted.
    pub(crate) fn open(&self, request: OpenRequest<'_>) -> Result<(Route, Opening), OpenRefused> {
        let OpenRequest {
            entrypoint,
            user,
            agent,
            target,
        } = request;
        let open = || -> Result<_, OpenRefused> {
            let access = self.admission.access();
            let has_right = match entrypoint {
                Entrypoint::Port { listen, .. } => access.allows_port(agent, listen),
                Entrypoint::Peer => access.allows_peers(agent),
                Entrypoint::Program => true,
            };
            let has_right =
                has_right && user.is_none_or(|user| access.users().allows(user, agent, target));
            if !has_right || !access.allows_target(agent, target) {
                return Err(OpenRefused::NoRight);
            }
            let replicas = access.replicas(agent);
            let route = match entrypoint {
                Entrypoint::Port { .. } | Entrypoint::Program => {
                    self.registry.find(agent, replicas)
                }
                // A peer's stream goes to a local agent or nowhere, so no stream goes in circles.
                Entrypoint::Peer => self.registry.own(agent, replicas),
            };
            let route = route.ok_or(OpenRefused::NoAgent)?;
            if !self.takes_open(agent) {
                self.metrics.limit_rejected("opens_per_second");
                return Err(OpenRefused::RateLimited);
            }
            let opening = route.open(target).inspect_err(|error| {
                if *error == OpenError::Busy {
                    self.metrics.limit_rejected("streams");
                }
            })?;
            Ok((route, opening))
        };
        open().inspect_err(|refused| {
            self.metrics.open_failed(refused.name());
            tracing::debug!(%entrypoint, user, agent, %target, %refused, "visitor refused");
        })
    }

    /// Waits for the agent's answer.
    ///
    /// # Errors
    ///
    /// [`OpenRefused`], which is counted.
    pub(crate) async fn accepted(&self, opening: Opening) -> Result<Stream, OpenRefused> {
        let owner = opening.owner();
        let opened = opening.accepted().await.map_err(OpenRefused::from);
        opened.inspect_err(|refused| {
            self.metrics.open_failed(refused.name());
            tracing::debug!(stream = owner.stream, %refused, "visitor refused");
        })
    }
}
