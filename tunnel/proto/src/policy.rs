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

mod carried;
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

/// What the rules say about a target before its name is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coverage {
    /// No rule can allow it, whatever the name resolves to.
    None,
    /// No rule has the name. A rule may allow an address that it resolves to.
    Address,
    /// A rule has the host as it was asked for.
    Host,
}

impl Policy {
    /// Says which kind of rule may allow `endpoint`, whose name was not looked up.
    #[must_use]
    pub fn coverage(&self, by: Protocol, endpoint: &Endpoint) -> Coverage {
        let rules = self.rules.iter().filter_map(|rule| match &rule.0 {
            Allowed::Inet {
                protocol,
                host,
                ports,
            } => (*protocol == by && ports.contains(&endpoint.port())).then_some(host),
            Allowed::Unix { .. } => None,
        });
        let coverage = rules.map(|host| match (host, endpoint.address()) {
            _ if is_named(host, endpoint) => Coverage::Host,
            (Host::Network(_), None) => Coverage::Address,
            (Host::Network(_) | Host::Name(_) | Host::Suffix(_), _) => Coverage::None,
        });
        coverage.max().unwrap_or(Coverage::None)
    }

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
        self.coverage(by, endpoint) == Coverage::Host
    }
}

/// Whether a rule's host is the one that was asked for.
fn is_named(host: &Host, endpoint: &Endpoint) -> bool {
    match host {
        Host::Network(network) => endpoint
            .address()
            .is_some_and(|address| network.contains(address)),
        Host::Name(name) => endpoint.host() == name,
        // The suffix begins with its dot, so something stands before it; an address is no name.
        Host::Suffix(suffix) => endpoint.address().is_none() && endpoint.host().ends_with(suffix),
    }
}

fn reaches(host: &Host, endpoint: &Endpoint, address: IpAddr, range: &Range) -> bool {
    if let Host::Network(network) = host {
        return network.contains(address)
            && match range {
                Range::Nowhere => false,
                Range::Guarded(guarded) => network.lies_within(guarded),
                Range::Ordinary => true,
            };
    }
    is_named(host, endpoint)
        && match range {
            Range::Nowhere => false,
            // RFC 6761, section 6.3: this name means loopback and nothing else.
            Range::Guarded(_) => endpoint.host() == "localhost" && address.is_loopback(),
            Range::Ordinary => true,
        }
}
