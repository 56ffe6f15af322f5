//! The types of options' values, and how each is written in the file.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use hyper::header::HeaderName;
use serde::{Deserialize, Deserializer, de};
use tunnel::io::tls::ClientCertificates;
use tunnel::listen::{self, ListenError};
use tunnel::metrics::Compat;
use tunnel::replicas::Replicas;
use tunnel::server::config::HealthPath;
use tunnel::server::config::forward::ForwardError;
use tunnel::server::config::port::{ProxyPort, ProxyPortError};
use tunnel::server::{Forward, Listen};
use tunnel::target::Endpoint;
use tunnel::uplink::ServerUrl;
use tunnel::wire::Dialect;
use tunnel::wire::handshake::{NAME_FORM, is_name};

/// The type of an option.
pub(super) trait Value: Sized {
    /// Reads a value from the file.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;

    /// Returns the path, if the value is one.
    fn path_mut(&mut self) -> Option<&mut PathBuf> {
        None
    }
}

/// Types that the file's reader knows.
macro_rules! as_themselves {
    ($($type:ty),* $(,)?) => { $(
        impl Value for $type {
            fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::deserialize(deserializer)
            }
        }
    )* };
}

/// Types that are written in the file as on the command line.
macro_rules! as_strings {
    ($($type:ty),* $(,)?) => { $(
        impl Value for $type {
            fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parse(&String::deserialize(deserializer)?)
            }
        }
    )* };
}

as_themselves![
    bool,
    u8,
    usize,
    String,
    NonZeroU32,
    NonZeroU64,
    ClientsArg,
    CompatArg,
    DialectArg,
    ReplicasArg,
];
as_strings![
    HeaderName, HealthPath, HostName, Invitee, Name, ServerUrl, Span
];

impl<T: FromStr<Err: Display>> Value for Vec<T> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let strings = Vec::<String>::deserialize(deserializer)?;
        strings.iter().map(|string| parse(string)).collect()
    }
}

impl<T: for<'de> Deserialize<'de>> Value for BTreeMap<String, T> {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }
}

impl Value for SocketAddr {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        listen::inet(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl Value for PathBuf {
    /// An empty path is a mistake, as it is on the command line.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = Self::deserialize(deserializer)?;
        if path.as_os_str().is_empty() {
            return Err(de::Error::custom("the path is empty"));
        }
        Ok(path)
    }

    fn path_mut(&mut self) -> Option<&mut PathBuf> {
        Some(self)
    }
}

fn parse<T: FromStr<Err: Display>, E: de::Error>(string: &str) -> Result<T, E> {
    string.parse().map_err(de::Error::custom)
}

/// What one text stands for: more than one if it has a range of ports.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Several<T>(pub(crate) Vec<T>);

/// Returns all that the texts of an option stand for.
pub(super) fn several<T>(option: &Option<Vec<Several<T>>>) -> impl Iterator<Item = &T> {
    let texts = option.iter().flatten();
    texts.flat_map(|Several(values)| values)
}

impl FromStr for Several<Forward> {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Forward::parse_all(text).map(Self)
    }
}

impl FromStr for Several<ProxyPort> {
    type Err = ProxyPortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ProxyPort::parse_all(text).map(Self)
    }
}

impl FromStr for Several<Listen> {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        listen::places(text).map(Self)
    }
}

/// How the other end talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DialectArg {
    /// This program's own.
    Native,
    /// That of rancher/remotedialer: no half-close, no acknowledged open.
    Remotedialer,
}

impl From<DialectArg> for Dialect {
    fn from(argument: DialectArg) -> Self {
        match argument {
            DialectArg::Native => Self::Native,
            DialectArg::Remotedialer => Self::Remotedialer,
        }
    }
}

/// Whose counters there are besides our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CompatArg {
    /// rancher/remotedialer: session_server_total_add_connections and nine more.
    Remotedialer,
}

impl From<CompatArg> for Compat {
    fn from(argument: CompatArg) -> Self {
        match argument {
            CompatArg::Remotedialer => Self::Remotedialer,
        }
    }
}

/// What several agents of one name do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReplicasArg {
    /// All stay connected; new streams go to the newest that answers.
    Share,
    /// All stay connected; a new stream goes to the one with the fewest streams.
    Spread,
    /// The newest replaces the others, whose streams are cut.
    Replace,
    /// A newcomer is refused with 409 while another one answers.
    Refuse,
}

impl From<ReplicasArg> for Replicas {
    fn from(argument: ReplicasArg) -> Self {
        match argument {
            ReplicasArg::Share => Self::Share,
            ReplicasArg::Spread => Self::Spread,
            ReplicasArg::Replace => Self::Replace,
            ReplicasArg::Refuse => Self::Refuse,
        }
    }
}

/// Who must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ClientsArg {
    /// Nobody; one that is shown must be good.
    Optional,
    /// Agents and peers; visitors need none.
    Agents,
    /// Everybody, visitors included.
    Required,
}

impl From<ClientsArg> for ClientCertificates {
    fn from(argument: ClientsArg) -> Self {
        match argument {
            ClientsArg::Optional => Self::Optional,
            ClientsArg::Agents => Self::Agents,
            ClientsArg::Required => Self::Required,
        }
    }
}

/// A length of time, as `10s` or `1m 30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let span = humantime::parse_duration(text);
        span.map(Self).map_err(|error| {
            format!("{text:?} is not a length of time such as 10s or 1m 30s: {error}")
        })
    }
}

/// A host's name or address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostName(pub(crate) String);

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.parse::<IpAddr>().is_ok() {
            return Ok(Self(text.to_owned()));
        }
        match Endpoint::parse(text, Some(1)) {
            Ok(endpoint) if !text.contains(':') => Ok(Self(endpoint.host().to_owned())),
            Ok(_) | Err(_) => Err(format!("{text:?} is neither a host's name nor an address")),
        }
    }
}

/// The name of an agent or a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NAME_FORM)
        }
    }
}

/// Whom an invitation is for: the agent of this name, or the first that comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invitee(pub(crate) Option<String>);

impl FromStr for Invitee {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Ok(Self(None)),
            name => name.parse().map(|Name(name)| Self(Some(name))),
        }
    }
}
