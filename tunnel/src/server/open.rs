//! Opens a stream for a visitor, from whatever entrypoint it came.

use std::fmt;
use std::time::Duration;

use hyper::StatusCode;
use tunnel_proto::listen::Listen;
use tunnel_proto::mux::{OpenError, Reason};
use tunnel_proto::replicas::{Health, Replicas};
use tunnel_proto::target::Target;

use crate::io::socket::Owner;
use crate::server::agents::registry::Route;
use crate::server::shared::Shared;
use crate::session::{Opening, Session, Stream};

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

impl OpenRefused {
    /// Whether the agent did not dial because of its session, so that another session may serve.
    const fn is_of_session(self) -> bool {
        matches!(
            self,
            Self::Open(
                OpenError::Busy
                    | OpenError::Draining
                    | OpenError::SessionOver
                    | OpenError::Refused(Reason::Draining | Reason::SessionOver | Reason::Replaced)
            )
        )
    }
}

/// The sessions that were asked for a visitor's stream in vain.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    sessions: Vec<u64>,
}

/// Why a stream was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAccepted {
    /// The visitor gets no stream.
    Refused(OpenRefused),
    /// Another session of the agent can be tried.
    TryAnother,
}

/// How often a session that does not answer is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

impl Shared {
    /// Finds the route to the agent and starts opening a stream. Every visitor's stream begins
    /// here, so access rights and rate limits are enforced here. Rights are checked before the
    /// route is looked up, and the rate afterwards.
    ///
    /// # Errors
    ///
    /// [`OpenRefused`], which is counted.
    pub(crate) fn open(
        &self,
        request: OpenRequest<'_>,
        tried: &mut Tried,
    ) -> Result<(Route, Opening), OpenRefused> {
        let OpenRequest {
            entrypoint,
            user,
            agent,
            target,
        } = request;
        let opened = self
            .has_right(request)
            .and_then(|replicas| self.open_any(request, replicas, tried));
        opened.inspect_err(|refused| {
            self.metrics.open_failed(refused.name());
            tracing::debug!(%entrypoint, user, agent, %target, %refused, "visitor refused");
        })
    }

    /// Checks the rights of a visitor. Returns what several agents of the name do.
    fn has_right(&self, request: OpenRequest<'_>) -> Result<Replicas, OpenRefused> {
        let OpenRequest {
            entrypoint,
            user,
            agent,
            target,
        } = request;
        let access = self.admission.access();
        let has_right = match entrypoint {
            Entrypoint::Port { listen, .. } => access.allows_port(agent, listen),
            Entrypoint::Peer => access.allows_peers(agent),
            Entrypoint::Program => true,
        };
        let has_right =
            has_right && user.is_none_or(|user| access.users().allows(user, agent, target));
        if has_right && access.allows_target(agent, target) {
            Ok(access.replicas(agent))
        } else {
            Err(OpenRefused::NoRight)
        }
    }

    /// Starts opening a stream in the first session that takes it.
    fn open_any(
        &self,
        request: OpenRequest<'_>,
        replicas: Replicas,
        tried: &mut Tried,
    ) -> Result<(Route, Opening), OpenRefused> {
        let OpenRequest {
            entrypoint,
            agent,
            target,
            ..
        } = request;
        let mut refused = OpenRefused::NoAgent;
        let mut is_first = tried.sessions.is_empty();
        loop {
            let tried_so_far = &tried.sessions;
            let route = match entrypoint {
                Entrypoint::Port { .. } | Entrypoint::Program => {
                    self.registry.find(agent, replicas, tried_so_far)
                }
                // A peer's stream goes to a local agent or nowhere, so no stream goes in circles.
                Entrypoint::Peer => self.registry.own(agent, replicas, tried_so_far),
            };
            let route = route.ok_or(refused)?;
            if std::mem::take(&mut is_first) && !self.takes_open(agent) {
                self.metrics.limit_rejected("opens_per_second");
                return Err(OpenRefused::RateLimited);
            }
            refused = match route.open(target) {
                Ok(opening) => return Ok((route, opening)),
                Err(error) => error.into(),
            };
            if refused == OpenRefused::Open(OpenError::Busy) {
                self.metrics.limit_rejected("streams");
            }
            if !refused.is_of_session() || !route.has_others() {
                return Err(refused);
            }
            tried.sessions.push(route.session().id());
        }
    }

    /// Waits for the agent's answer. If the agent has other sessions, one that drains, ends or does
    /// not answer is given up for them. No byte of the visitor has been sent by then.
    ///
    /// # Errors
    ///
    /// [`NotAccepted`]. A refusal is counted.
    pub(crate) async fn accepted(
        &self,
        route: &Route,
        opening: Opening,
        tried: &mut Tried,
    ) -> Result<Stream, NotAccepted> {
        let owner = opening.owner();
        let opened = if route.has_others() {
            tokio::select! {
                biased;
                opened = opening.accepted() => opened,
                () = is_overdue(route.session()) => Err(OpenError::SessionOver),
            }
        } else {
            opening.accepted().await
        };
        opened.map_err(|error| {
            let refused = OpenRefused::from(error);
            tracing::debug!(stream = owner.stream, %refused, "visitor refused");
            if route.has_others() && refused.is_of_session() {
                tried.sessions.push(owner.session);
                return NotAccepted::TryAnother;
            }
            self.metrics.open_failed(refused.name());
            NotAccepted::Refused(refused)
        })
    }

    /// Opens a stream in any session of the agent. `opening` is called for each attempt.
    ///
    /// # Errors
    ///
    /// [`OpenRefused`], which is counted.
    pub(crate) async fn open_stream(
        &self,
        request: OpenRequest<'_>,
        mut opening: impl FnMut(Owner),
    ) -> Result<(Route, Stream), OpenRefused> {
        let mut tried = Tried::default();
        loop {
            let (route, attempt) = self.open(request, &mut tried)?;
            opening(attempt.owner());
            match self.accepted(&route, attempt, &mut tried).await {
                Ok(stream) => return Ok((route, stream)),
                Err(NotAccepted::Refused(refused)) => return Err(refused),
                Err(NotAccepted::TryAnother) => {}
            }
        }
    }
}

/// Returns when a session owes a sign of life.
async fn is_overdue(session: &Session) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        if session.health() == Health::Overdue {
            return;
        }
        session.probe();
    }
}
