//! The values of labels.

use std::fmt;

/// Which timeout reset a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// Nothing moved in either direction.
    Idle,
    /// One direction is finished and nothing moved in the other.
    Linger,
    /// The agent could not resolve and dial in time.
    Dial,
    /// The agent did not answer an open in time.
    Open,
    /// TCP gave up on the visitor or the target: keep-alive, TCP_USER_TIMEOUT or retransmissions.
    Tcp,
}

impl Timeout {
    pub(super) const ALL: [Self; 5] = [Self::Idle, Self::Linger, Self::Dial, Self::Open, Self::Tcp];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Linger => "linger",
            Self::Dial => "dial",
            Self::Open => "open",
            Self::Tcp => "tcp",
        }
    }
}

/// A port that asks for a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginPort {
    /// `/connect` for agents and peers.
    Agent,
    /// A SOCKS5 port.
    Socks5,
    /// An HTTP CONNECT port.
    Connect,
    /// An HTTP port.
    Http,
    /// The admin port.
    Admin,
}

impl LoginPort {
    pub(super) const ALL: [Self; 5] = [
        Self::Agent,
        Self::Socks5,
        Self::Connect,
        Self::Http,
        Self::Admin,
    ];

    /// Returns the value of the label `port`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Socks5 => "socks5",
            Self::Connect => "connect",
            Self::Http => "http",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for LoginPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a login was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginRefusal {
    /// The secret is wrong.
    Wrong,
    /// There were too many wrong ones from the address. The secret was not looked at.
    TooMany,
}

impl LoginRefusal {
    pub(super) const ALL: [Self; 2] = [Self::Wrong, Self::TooMany];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::TooMany => "too many",
        }
    }
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The flow's queue is full: the stream is slower than the source.
    Queue,
    /// The limit on flows is reached.
    Flows,
    /// There is no stream: the agent is not connected, or it refused.
    Stream,
    /// The socket did not accept it.
    Socket,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Queue, Self::Flows, Self::Stream, Self::Socket];

    /// Returns the value of the label `reason`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Flows => "flows",
            Self::Stream => "stream",
            Self::Socket => "socket",
        }
    }
}

/// Reasons for refusing a visitor that are not among [`Reason`](tunnel_proto::mux::Reason).
pub(super) const NO_ROUTE: [&str; 3] = ["no agent", "no right", "limit"];

/// Why an agent cannot connect to its server: the values for
/// [`Metrics::connect_failed`](crate::metrics::Metrics::connect_failed).
pub(super) const CONNECT_FAILURES: [&str; 10] = [
    "unresolved",
    "unreachable",
    "proxy",
    "refused",
    "handshake",
    "timed out",
    "certificate",
    "client certificate",
    "tls",
    "tls files",
];

/// The limits: the values for [`Metrics::limit_rejected`](crate::metrics::Metrics::limit_rejected).
pub(super) const LIMITS: [&str; 9] = [
    "connections",
    "frame_size",
    "handshake",
    "handshakes",
    "header",
    "opens_per_second",
    "replicas",
    "sessions",
    "streams",
];

/// The HTTP statuses of refused links: the values for
/// [`Metrics::agent_refused`](crate::metrics::Metrics::agent_refused).
pub(super) const REFUSALS: [&str; 7] = ["400", "401", "403", "405", "409", "426", "429"];
