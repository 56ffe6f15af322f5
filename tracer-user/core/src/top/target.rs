//! What a socket is for: where it was dialed to, or which listener accepted it.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use tracer_abi::facts::{IPPROTO_MPTCP, IPPROTO_TCP, IPPROTO_UDP};

use super::look::{Look, Seen, SocketKey};

/// What the sockets of a row have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Connections to this address.
    Dialed {
        /// `IPPROTO_*`.
        protocol: u16,
        /// The remote end.
        remote: SocketAddr,
    },
    /// Connections that a listener accepted.
    Accepted {
        /// `IPPROTO_*`.
        protocol: u16,
        /// Where it listens; `None` if they are dead and several could have accepted them.
        listener: Option<SocketAddr>,
    },
    /// Listeners.
    Listening,
    /// Sockets without a remote end.
    Unconnected {
        /// `IPPROTO_*`.
        protocol: u16,
    },
    /// Rows of one process that are shown as one.
    Several(u64),
}

impl Target {
    /// Returns the protocol's name; `None` if there may be several.
    #[must_use]
    pub fn protocol(&self) -> Option<String> {
        match self {
            Self::Dialed { protocol, .. }
            | Self::Accepted { protocol, .. }
            | Self::Unconnected { protocol } => Some(match *protocol {
                IPPROTO_TCP => "tcp".to_owned(),
                IPPROTO_UDP => "udp".to_owned(),
                IPPROTO_MPTCP => "mptcp".to_owned(),
                number => format!("ip-{number}"),
            }),
            Self::Listening | Self::Several(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(protocol) = self.protocol().filter(|name| name != "tcp") {
            write!(f, "{protocol} ")?;
        }
        match self {
            Self::Dialed { remote, .. } => remote.fmt(f),
            Self::Accepted {
                listener: Some(at), ..
            } => write!(f, "accepted at {at}"),
            Self::Accepted { listener: None, .. } => f.write_str("accepted"),
            Self::Listening => f.write_str("listeners"),
            Self::Unconnected { .. } => f.write_str("not connected"),
            Self::Several(number) => write!(f, "{number} more targets"),
        }
    }
}

/// What one look tells about listeners.
pub(super) struct Targets {
    namespaces: HashMap<u32, u64>,
    /// By network namespace and port: the least address.
    listeners: HashMap<(u64, u16), SocketAddr>,
    /// The processes that hold listeners, each with the only one, if it is.
    accepting: HashMap<u32, Option<SocketAddr>>,
    /// How many dead sockets of a process, whose local port is gone, have the same remote end.
    alike: HashMap<(u32, SocketAddr), u32>,
}

impl Targets {
    pub(super) fn new(look: &Look, mut namespace_of: impl FnMut(u32) -> u64) -> Self {
        let mut targets = Self {
            namespaces: HashMap::new(),
            listeners: HashMap::new(),
            accepting: HashMap::new(),
            alike: HashMap::new(),
        };
        for (key, seen) in look.sockets() {
            let namespace = *targets
                .namespaces
                .entry(key.pid)
                .or_insert_with(|| namespace_of(key.pid));
            if seen.is_listener() {
                let at = (namespace, seen.local.port());
                let listener = targets.listeners.entry(at).or_insert(seen.local);
                *listener = seen.local.min(*listener);
                targets
                    .accepting
                    .entry(key.pid)
                    .and_modify(|only| *only = only.filter(|only| *only == seen.local))
                    .or_insert(Some(seen.local));
            } else if lost_its_port(seen) {
                *targets.alike.entry((key.pid, seen.remote)).or_default() += 1;
            }
        }
        targets
    }

    /// Returns the target of a socket; `past` is that of the last look.
    pub(super) fn of(&self, key: &SocketKey, seen: &Seen, past: Option<Target>) -> Target {
        let protocol = seen.protocol;
        if seen.is_listener() {
            return Target::Listening;
        }
        if seen.remote.port() == 0 {
            return Target::Unconnected { protocol };
        }
        let dialed = Target::Dialed {
            protocol,
            remote: seen.remote,
        };
        if !seen.is_tcp() {
            return dialed;
        }
        if lost_its_port(seen) {
            return match past {
                Some(past @ (Target::Dialed { .. } | Target::Accepted { .. })) => past,
                Some(Target::Listening | Target::Unconnected { .. } | Target::Several(_))
                | None => self.guess(key.pid, seen, dialed),
            };
        }
        // No other connection of the namespace has the port of a listener: `__inet_hash_connect`
        // passes over ports that are bound.
        let namespace = self.namespaces.get(&key.pid).copied().unwrap_or(0);
        match self.listeners.get(&(namespace, seen.local.port())) {
            Some(listener) => Target::Accepted {
                protocol,
                listener: Some(*listener),
            },
            None => dialed,
        }
    }

    /// Guesses the target of a dead socket that no look met alive. Visitors come from ports that
    /// differ; what is dialed again and again has one remote end.
    fn guess(&self, pid: u32, seen: &Seen, dialed: Target) -> Target {
        let alike = self.alike.get(&(pid, seen.remote)).copied().unwrap_or(0);
        match self.accepting.get(&pid) {
            Some(listener) if alike < 2 => Target::Accepted {
                protocol: seen.protocol,
                listener: *listener,
            },
            Some(_) | None => dialed,
        }
    }
}

/// Whether TCP has taken its local port from the socket, as it does when a connection dies
/// (`inet_put_port`).
const fn lost_its_port(seen: &Seen) -> bool {
    seen.is_dead() && seen.local.port() == 0
}
