//! The ports that serve `/client/...` to HTTP visitors, as they are configured.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use hyper::Uri;
use tunnel_proto::listen::{Listen, ListenError};

pub use crate::http::forwarded::{TrustedProxy, TrustedProxyError};
pub use crate::http::origin::{Origin, OriginError};

/// A port whose visitors name their agent and target by
/// `/client/{agent}/{scheme}/{host[:port]}/{path}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpPort {
    /// Where it listens.
    pub listen: Listen,
    /// Whose socket it has.
    pub socket: HttpSocket,
    /// Whether visitors must log in as one of the users of the access table, by a password, a token
    /// or a client certificate. Without it everyone who can connect may ask for every target that
    /// the agents allow.
    pub login: bool,
    /// The host names that requests may use, besides addresses and `localhost`: without a port, in
    /// lower case.
    pub hosts: Vec<String>,
    /// The origins of other sites whose pages may ask.
    pub origins: Vec<Origin>,
    /// The proxies in front that tell who the visitor is.
    pub trusted_proxies: Vec<TrustedProxy>,
}

/// Whose socket an HTTP port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpSocket {
    /// That of [`Config::listen`](crate::server::Config::listen), and its TLS.
    Shared,
    /// Its own, without TLS.
    Plain,
    /// Its own, with the TLS of [`Config::tls`](crate::server::Config::tls).
    Tls,
}

impl HttpPort {
    /// Returns a port that needs no login.
    #[must_use]
    pub const fn new(listen: Listen, socket: HttpSocket) -> Self {
        Self {
            listen,
            socket,
            login: false,
            hosts: Vec::new(),
            origins: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

impl fmt::Display for HttpPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.listen.fmt(f)
    }
}

/// Where HTTP visitors are served: `IP:PORT`, `unix:[MODE:]/PATH`, or `listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpListen {
    /// At [`Config::listen`](crate::server::Config::listen).
    Shared,
    /// At an address of its own.
    Own(Listen),
}

impl HttpListen {
    /// Returns the port that needs no login, where the server listens at `listen`.
    #[must_use]
    pub fn port(self, listen: SocketAddr) -> HttpPort {
        match self {
            Self::Shared => HttpPort::new(listen.into(), HttpSocket::Shared),
            Self::Own(own) => HttpPort::new(own, HttpSocket::Plain),
        }
    }
}

impl FromStr for HttpListen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "listen" => Ok(Self::Shared),
            _ => text.parse().map(Self::Own),
        }
    }
}

/// A path at which the front and the HTTP ports answer health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPath(String);

/// A text is not a path for health checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a path for health checks: write an absolute path such as /healthz, other than \
     /connect and below /client"
)]
pub struct HealthPathError(String);

impl HealthPath {
    /// Returns the path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HealthPath {
    type Err = HealthPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_path = text.starts_with('/')
            && !text.starts_with("//")
            && text.parse::<Uri>().is_ok_and(|uri| uri.path() == text);
        let is_taken = matches!(text, "/connect" | "/client") || text.starts_with("/client/");
        if is_path && !is_taken {
            Ok(Self(text.to_owned()))
        } else {
            Err(HealthPathError(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_path_takes_no_other_path() {
        for path in ["/", "/healthz", "/a/b", "/connections"] {
            assert_eq!(path.parse::<HealthPath>().unwrap().as_str(), path);
        }
        for wrong in [
            "",
            "healthz",
            "/a b",
            "/a?b",
            "/a#b",
            "//host/a",
            "http://a/b",
            "/connect",
            "/client",
            "/client/a",
        ] {
            assert!(wrong.parse::<HealthPath>().is_err(), "{wrong}");
        }
    }
}
