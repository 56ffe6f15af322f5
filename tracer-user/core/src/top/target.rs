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
        /// Where it listens.
        listener: SocketAddr,
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
            Self::Accepted { listener, .. } => write!(f, "accepted at {listener}"),
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
}

impl Targets {
    pub(super) fn new(look: &Look, mut namespace_of: impl FnMut(u32) -> u64) -> Self {
        let mut targets = Self {
            namespaces: HashMap::new(),
            listeners: HashMap::new(),
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
            }
        }
        targets
    }

    /// Returns the target of a socket.
    pub(super) fn of(&self, key: &SocketKey, seen: &Seen) -> Target {
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
        // No other connection of the namespace has the port of a listener: `__inet_hash_connect`
        // passes over ports that are bound.
        let namespace = self.namespaces.get(&key.pid).copied().unwrap_or(0);
        match self.listeners.get(&(namespace, seen.local.port())) {
            Some(listener) => Target::Accepted {
                protocol,
                listener: *listener,
            },
            None => dialed,
        }
    }
}
