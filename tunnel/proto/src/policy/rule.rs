//! Dialect as text.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use crate::policy::network::Network;
use crate::target::{Endpoint, SocketPath};

/// One rule: `HOST:PORT`, `udp:HOST:PORT` or `unix:PATH`.
///
/// HOST is an address, a network (`10.0.0.0/8`, IPv6 in brackets), a name, or `*.NAME` for every
/// name below NAME. PORT is a number, a range (`8000-8099`) or `*`. PATH is a socket's, or
/// `DIRECTORY/*` for every socket in that directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(pub(super) Allowed);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Allows TCP connections or UDP flows.
    Inet {
        /// By which of the two.
        protocol: Protocol,
        /// To where.
        host: Host,
        /// To which ports.
        ports: RangeInclusive<u16>,
    },
    /// Allows Unix sockets.
    Unix {
        /// The directory of the socket; its own symbolic links are followed.
        directory: PathBuf,
        /// The socket's name in it, or every one.
        name: Option<String>,
    },
}

/// How an address is dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A rule says nothing of it.
    Tcp,
    /// A rule begins with `udp:`.
    Udp,
}

/// Which hosts a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// The addresses of a network.
    Network(Network),
    /// What this name resolves to, when it was asked for by this name.
    Name(String),
    /// What names with this end resolve to; it begins with a dot.
    Suffix(String),
}

/// Why a text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It is neither of the forms.
    #[error(
        "{0:?} is not a rule: write HOST:PORT, udp:HOST:PORT or unix:PATH; HOST is an address, a network such as 10.0.0.0/8 (IPv6 in brackets), a name or *.NAME, PORT a number, a range such as 8000-8099, or *"
    )]
    Malformed(String),
    /// The path could be another one's.
    #[error(
        "{0:?} is not a rule: write unix:PATH with an absolute path without '.', '..' and '//', or unix:DIRECTORY/*"
    )]
    Path(String),
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let rule = unix(path).ok_or_else(|| RuleError::Path(text.to_owned()));
            return rule.map(Self);
        }
        let rule = match text.strip_prefix("udp:") {
            Some(rest) => inet(Protocol::Udp, rest),
            None => inet(Protocol::Tcp, text),
        };
        rule.map(Self)
            .ok_or_else(|| RuleError::Malformed(text.to_owned()))
    }
}

fn unix(path: &str) -> Option<Allowed> {
    let path: SocketPath = path.parse().ok()?;
    let (directory, name) = path.as_str().rsplit_once('/')?;
    let directory = if directory.is_empty() { "/" } else { directory };
    Some(Allowed::Unix {
        directory: PathBuf::from(directory),
        name: (name != "*").then(|| name.to_owned()),
    })
}

fn inet(protocol: Protocol, text: &str) -> Option<Allowed> {
    let (host, ports) = text.rsplit_once(':')?;
    Some(Allowed::Inet {
        protocol,
        host: self::host(host)?,
        ports: self::ports(ports)?,
    })
}

fn host(text: &str) -> Option<Host> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let network = bracketed.strip_suffix(']')?;
        return network
            .contains(':')
            .then(|| network.parse().ok().map(Host::Network))?;
    }
    if text.contains(':') {
        return None;
    }
    if let Ok(network) = text.parse() {
        return Some(Host::Network(network));
    }
    let (wild, name) = match text.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, text),
    };
    let endpoint = Endpoint::parse(name, Some(1)).ok()?;
    match (wild, endpoint.address()) {
        (true, Some(_)) => None,
        (true, None) => Some(Host::Suffix(format!(".{}", endpoint.host()))),
        (false, Some(address)) => Some(Host::Network(address.into())),
        (false, None) => Some(Host::Name(endpoint.host().to_owned())),
    }
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    if text == "*" {
        return Some(1..=u16::MAX);
    }
    let port = |text: &str| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>()
            .ok()
            .filter(|port| is_number && *port != 0)
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some(first..=last)
}
