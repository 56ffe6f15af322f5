//! What an agent may dial: nothing, unless a rule allows it. The resolved address is what is checked.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::target::Target;

/// The rules of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// One rule: `HOST:PORT`, where HOST is an address, a network (`10.0.0.0/8`) or a name, and PORT a number or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// Addresses whose first `prefix` bits are those of the address.
    Network(IpAddr, u8),
    /// Whatever this name resolves to, when it was asked for by this name.
    Name(String),
}

/// Why a text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a rule: write HOST:PORT, where HOST is an address, a network such as 10.0.0.0/8 or a name (IPv6 in brackets), and PORT a number or *"
)]
pub struct RuleError(String);

impl Policy {
    /// Creates a policy that allows what any of the rules allows.
    #[must_use]
    pub const fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// Whether `address`, to which `target` was resolved, may be dialed.
    #[must_use]
    pub fn allows(&self, target: &Target, address: SocketAddr) -> bool {
        self.rules.iter().any(|rule| rule.allows(target, address))
    }
}

impl Rule {
    fn allows(&self, target: &Target, address: SocketAddr) -> bool {
        if self.port.is_some_and(|port| port != address.port()) {
            return false;
        }
        match &self.host {
            Host::Network(network, prefix) => {
                contains(*network, *prefix, address.ip().to_canonical())
            }
            Host::Name(name) => target.host() == name,
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || RuleError(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = match port {
            "*" => None,
            port => Some(
                port.parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(error)?,
            ),
        };
        let bare = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(error)?,
            None if host.contains(':') => return Err(error()),
            None => host,
        };
        let host = match bare.split_once('/') {
            Some((network, prefix)) => {
                let network: IpAddr = network.parse().map_err(|_| error())?;
                let prefix: u8 = prefix.parse().map_err(|_| error())?;
                if prefix > bits(network) {
                    return Err(error());
                }
                Host::Network(network, prefix)
            }
            None => match bare.parse::<IpAddr>() {
                Ok(address) => Host::Network(address.to_canonical(), bits(address.to_canonical())),
                // A text of digits and dots that is no address is a typing error and not a name.
                Err(_)
                    if bare
                        .bytes()
                        .all(|byte| byte.is_ascii_digit() || byte == b'.') =>
                {
                    return Err(error());
                }
                Err(_) => match Target::tcp(bare, Some(1)) {
                    Ok(target) => Host::Name(target.host().to_owned()),
                    Err(_) => return Err(error()),
                },
            },
        };
        Ok(Self { host, port })
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn contains(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let differing = network.to_bits() ^ address.to_bits();
            differing.leading_zeros() >= u32::from(prefix)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let differing = network.to_bits() ^ address.to_bits();
            differing.leading_zeros() >= u32::from(prefix)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(rules: &[&str], target: &str, address: &str) -> bool {
        let policy = Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect());
        policy.allows(&target.parse().unwrap(), address.parse().unwrap())
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        assert!(!allows(&[], "tcp/127.0.0.1:80", "127.0.0.1:80"));
    }

    #[test]
    fn addresses_networks_names_and_ports() {
        for (rule, target, address, allowed) in [
            ("127.0.0.1:80", "tcp/127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "tcp/127.0.0.1:81", "127.0.0.1:81", false),
            ("127.0.0.1:*", "tcp/127.0.0.1:81", "127.0.0.1:81", true),
            ("127.0.0.1:80", "tcp/localhost:80", "127.0.0.1:80", true),
            (
                "127.0.0.1:80",
                "tcp/[::ffff:127.0.0.1]:80",
                "[::ffff:127.0.0.1]:80",
                true,
            ),
            ("10.0.0.0/8:443", "tcp/a:443", "10.255.0.1:443", true),
            ("10.0.0.0/8:443", "tcp/a:443", "11.0.0.1:443", false),
            ("0.0.0.0/0:*", "tcp/a:443", "11.0.0.1:443", true),
            ("0.0.0.0/0:*", "tcp/a:443", "[::1]:443", false),
            ("[::1]:80", "tcp/a:80", "[::1]:80", true),
            ("[fd00::/8]:*", "tcp/a:80", "[fd12::1]:80", true),
            ("[fd00::/8]:*", "tcp/a:80", "[fe80::1]:80", false),
            (
                "db.internal:5432",
                "tcp/DB.internal:5432",
                "192.0.2.1:5432",
                true,
            ),
            (
                "db.internal:5432",
                "tcp/192.0.2.1:5432",
                "192.0.2.1:5432",
                false,
            ),
        ] {
            assert_eq!(
                allows(&[rule], target, address),
                allowed,
                "{rule} {target} {address}"
            );
        }
    }

    #[test]
    fn what_is_not_a_rule_is_refused() {
        for text in [
            "",
            "a",
            "a:",
            "a:0",
            "a:70000",
            ":80",
            "10.0.0.0/33:80",
            "10.0.0:80",
            "::1:80",
            "[::1:80",
            "a b:80",
            "x/8:80",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }
}
