//! What an agent may dial: nothing, unless a rule allows it.
//!
//! What is checked is what is dialed: the address that a name was resolved to, the file that a path
//! led to, never the name alone. Some addresses no rule reaches, and some only a rule that is about
//! them:
//!
//! | addresses | reached by |
//! |---|---|
//! | unspecified, multicast, reserved, and IPv6 addresses that carry one of those below | nothing |
//! | loopback, link-local, and where clouds serve their instances' secrets | a network within that range; loopback also by the name `localhost` |
//! | all others | a network, or a name that resolves to them |

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub mod network;
mod range;
mod rule;

#[cfg(test)]
mod tests;

use crate::policy::range::Range;
use crate::policy::rule::{Allowed, Host};
pub use crate::policy::rule::{Protocol, Rule, RuleError};
use crate::target::{Endpoint, Target};

/// The rules of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Arc<[Rule]>,
}

impl Policy {
    /// Creates a policy that allows what any of the rules allows.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            rules: rules.into(),
        }
    }

    /// Whether `address`, to which `endpoint` was resolved, may be dialed.
    #[must_use]
    pub fn allows(&self, by: Protocol, endpoint: &Endpoint, address: SocketAddr) -> bool {
        let range = Range::of(address.ip());
        self.rules.iter().any(|rule| match &rule.0 {
            Allowed::Inet {
                protocol,
                host,
                ports,
            } => {
                *protocol == by
                    && ports.contains(&address.port())
                    && reaches(host, endpoint, address.ip(), &range)
            }
            Allowed::Unix { .. } => false,
        })
    }

    /// Whether the Unix socket may be dialed whose file has the path `file` after all symbolic
    /// links. `resolve` gives the same form of a rule's directory.
    #[must_use]
    pub fn allows_unix(&self, file: &Path, resolve: impl Fn(&Path) -> Option<PathBuf>) -> bool {
        let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else {
            return false;
        };
        self.rules.iter().any(|rule| match &rule.0 {
            Allowed::Inet { .. } => false,
            Allowed::Unix {
                directory: allowed,
                name: only,
            } => {
                only.as_ref().is_none_or(|only| name == only.as_str())
                    && resolve(allowed).is_some_and(|allowed| allowed == directory)
            }
        })
    }
}

impl Policy {
    /// Whether a rule is about `target` as it is asked for: no name is resolved, no file looked up,
    /// and no range guarded. It is for who passes a request on; who dials checks what is dialed.
    #[must_use]
    pub fn covers(&self, target: &Target) -> bool {
        let (by, endpoint) = match target {
            Target::Tcp(endpoint) => (Protocol::Tcp, endpoint),
            Target::Udp(endpoint) => (Protocol::Udp, endpoint),
            Target::Unix(path) => {
                let lexical = |path: &Path| Some(path.to_owned());
                return self.allows_unix(Path::new(path.as_str()), lexical);
            }
        };
        self.rules.iter().any(|rule| match &rule.0 {
            Allowed::Inet {
                protocol,
                host,
                ports,
            } => {
                let named = match (host, endpoint.address()) {
                    (Host::Network(network), Some(address)) => network.contains(address),
                    (Host::Network(_), None) => false,
                    (Host::Name(name), _) => endpoint.host() == name,
                    (Host::Suffix(suffix), None) => endpoint.host().ends_with(suffix),
                    (Host::Suffix(_), Some(_)) => false,
                };
                named && *protocol == by && ports.contains(&endpoint.port())
            }
            Allowed::Unix { .. } => false,
        })
    }
}

fn reaches(host: &Host, endpoint: &Endpoint, address: IpAddr, range: &Range) -> bool {
    let named = match host {
        Host::Network(network) => {
            return network.contains(address)
                && match range {
                    Range::Nowhere => false,
                    Range::Guarded(guarded) => network.lies_within(guarded),
                    Range::Ordinary => true,
                };
        }
        Host::Name(name) => endpoint.host() == name,
        // The suffix begins with its dot, so something stands before it; an address is no name.
        Host::Suffix(suffix) => endpoint.address().is_none() && endpoint.host().ends_with(suffix),
    };
    named
        && match range {
            Range::Nowhere => false,
            // RFC 6761, section 6.3: this name means loopback and nothing else.
            Range::Guarded(_) => endpoint.host() == "localhost" && address.is_loopback(),
            Range::Ordinary => true,
        }
}
