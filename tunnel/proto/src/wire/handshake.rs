//! The names and headers of the handshake that makes a connection a link.

use std::fmt;

/// Who is at the other end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// An agent that dialed us.
    Agent,
    /// A server that dialed us.
    Peer,
    /// A server that we dialed, as its agent or as its peer.
    Server,
}

/// The request header with the agent's name.
pub const NAME_HEADER: &str = "x-tunnel-id";

/// The request header with a peer's name.
pub const PEER_NAME_HEADER: &str = "x-api-tunnel-id";

/// The request header with the secret that peers share.
pub const PEER_TOKEN_HEADER: &str = "x-api-tunnel-token";

/// The response header with the session's identifier, a decimal number.
pub const SESSION_HEADER: &str = "x-tunnel-session";

/// The response header with the token that an agent which was let in by an invitation has for its
/// own from then on.
pub const OWN_TOKEN_HEADER: &str = "x-tunnel-token";

/// The request header by which the links of one agent are told from those of another of the same
/// name: a [`LinkId`].
pub const LINK_HEADER: &str = "x-tunnel-link";

/// The most links that one agent may have to one server.
pub const LINKS_MAX: u8 = 16;

/// Which link of which instance of an agent: `INSTANCE/SLOT`, two decimal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkId {
    /// Chosen at random when the agent starts.
    pub instance: u64,
    /// Below [`LINKS_MAX`].
    pub slot: u8,
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.instance, self.slot)
    }
}

impl LinkId {
    /// Reads the value of [`LINK_HEADER`].
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let (instance, slot) = value.split_once('/')?;
        let slot = slot.parse().ok().filter(|slot| *slot < LINKS_MAX)?;
        let instance = instance.parse().ok()?;
        Some(Self { instance, slot })
    }
}

/// The request header with the agent's secret, where something on the way has `Authorization` for
/// itself.
pub const TOKEN_HEADER: &str = OWN_TOKEN_HEADER;

/// The longest name of an agent in bytes: that of a Kubernetes object.
pub const NAME_MAX: usize = 253;

/// The form of a name, for errors.
pub const NAME_FORM: &str =
    "a name has 1 to 253 letters, digits, '-', '_', '.', '@', '+', '~', or ':' between others";

/// Whether `name` can be an agent's: 1 to [`NAME_MAX`] letters, digits, `-`, `_`, `.`, `@`, `+`,
/// `~`, or `:` with another on either side. Clients of remotedialer send names such as
/// `c-abcde:m-12345`; `::` separates a name from a target between peers.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| {
                byte.is_ascii_alphanumeric()
                    || matches!(byte, b'-' | b'_' | b'.' | b'@' | b'+' | b'~')
            })
    };
    name.len() <= NAME_MAX && name.split(':').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kubernetes_and_of_remotedialer_s_clients() {
        let long = format!("{}.example", "a".repeat(245));
        for name in [
            "a",
            "Web_1",
            "cluster-1.fleet.internal",
            "c-abcde:m-12345",
            "system:node:worker-1",
            "user@host+x~1",
            &long,
        ] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            ":",
            "a:",
            ":a",
            "a::b",
            "a b",
            "a/b",
            "a=b",
            "a,b",
            "a&b",
            "a#b",
            "a%3Ab",
            "\u{e9}",
            "a\n",
            &format!("{long}x"),
        ] {
            assert!(!is_name(name), "{name}");
        }
    }
}
