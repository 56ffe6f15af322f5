//! Where a stream goes: `tcp/HOST:PORT`, `udp/HOST:PORT` or `unix//PATH`.

use std::fmt;
use std::str::FromStr;

mod endpoint;

pub use crate::target::endpoint::Endpoint;

/// A target as the opener names it. Nothing is resolved here: the agent does that, and its policy
/// checks the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A TCP connection.
    Tcp(Endpoint),
    /// A flow of datagrams from one address of the agent; the stream carries them as
    /// [`crate::wire::datagram`] says.
    Udp(Endpoint),
    /// A connection to a Unix stream socket.
    Unix(SocketPath),
}

/// The absolute path of a Unix socket, at most [`SocketPath::MAX`] bytes, without `.`, `..`, empty
/// parts or control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketPath(String);

/// Why a text is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The protocol is not one that is served.
    #[error("{0:?} is not a target: write tcp/HOST:PORT, udp/HOST:PORT or unix//PATH")]
    Proto(String),
    /// There is no host, or it has characters that no host has.
    #[error("{0:?} is not a host name or address; write HOST:PORT, an IPv6 address in brackets")]
    Host(String),
    /// There is no port from 1 to 65535.
    #[error("{0:?} has no port from 1 to 65535; write HOST:PORT")]
    Port(String),
    /// It is not a path that names one socket in one way.
    #[error("{0:?} is not the path of a socket: write an absolute path without '.', '..' and '//'")]
    Path(String),
}

impl SocketPath {
    /// The longest path in bytes: with its protocol it fits into the connect of either dialect.
    pub const MAX: usize = 255;

    /// Returns the path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SocketPath {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_path = text.len() <= Self::MAX
            && !text.contains(char::is_control)
            && text.strip_prefix('/').is_some_and(|parts| {
                parts
                    .split('/')
                    .all(|part| !matches!(part, "" | "." | ".."))
            });
        if is_path {
            Ok(Self(text.to_owned()))
        } else {
            Err(TargetError::Path(text.to_owned()))
        }
    }
}

impl Target {
    /// Makes a TCP target of `HOST:PORT`, or of `HOST` when there is a default port.
    ///
    /// # Errors
    ///
    /// [`TargetError`] names the part that is wrong.
    pub fn tcp(authority: &str, default_port: Option<u16>) -> Result<Self, TargetError> {
        Endpoint::parse(authority, default_port).map(Self::Tcp)
    }

    /// Returns the protocol's name.
    #[must_use]
    pub const fn proto(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Udp(_) => "udp",
            Self::Unix(_) => "unix",
        }
    }

    /// Returns `HOST:PORT`, or the path.
    #[must_use]
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp(endpoint) | Self::Udp(endpoint) => endpoint.to_string(),
            Self::Unix(path) => path.0.clone(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.proto())?;
        match self {
            Self::Tcp(endpoint) | Self::Udp(endpoint) => endpoint.fmt(f),
            Self::Unix(path) => f.write_str(&path.0),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some(("tcp", authority)) => Self::tcp(authority, None),
            Some(("udp", authority)) => Endpoint::parse(authority, None).map(Self::Udp),
            Some(("unix", path)) => path.parse().map(Self::Unix),
            Some(_) | None => Err(TargetError::Proto(text.to_owned())),
        }
    }
}

impl TryFrom<&str> for Target {
    type Error = TargetError;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<&Self> for Target {
    fn from(target: &Self) -> Self {
        target.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_back_as_written() {
        for text in [
            "tcp/127.0.0.1:80",
            "tcp/[::1]:443",
            "udp/10.0.0.53:53",
            "tcp/db.internal:5432",
            "unix//run/app.sock",
            "unix//tmp/a b",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        let path = "unix//run/app.sock".parse::<Target>().unwrap();
        assert_eq!(path.authority(), "/run/app.sock");
        assert_eq!(Target::tcp("web", Some(80)).unwrap().authority(), "web:80");
        assert_eq!(
            Target::tcp("[::1]", Some(80)).unwrap().authority(),
            "[::1]:80"
        );
    }

    #[test]
    fn one_name_has_one_form() {
        for (text, form) in [
            ("tcp/DB.Internal:1", "tcp/db.internal:1"),
            ("tcp/db.internal.:1", "tcp/db.internal:1"),
            ("tcp/127.0.0.1.:1", "tcp/127.0.0.1:1"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), form);
        }
    }

    #[test]
    fn what_is_not_a_target_is_refused() {
        let long = format!("unix//{}", "a".repeat(SocketPath::MAX));
        for text in [
            "",
            "tcp",
            "tcp::/a:1",
            "raw/a:1",
            "udp/a",
            "tcp/:80",
            "tcp/a",
            "tcp/a:0",
            "tcp/a:65536",
            "tcp/a:+1",
            "tcp/a b:1",
            "tcp/a..b:1",
            "tcp/.:1",
            "tcp/.a:1",
            "tcp/a..:1",
            "tcp/a@b:1",
            "tcp/a%00:1",
            "tcp/a\0:1",
            "tcp/\u{ff11}.1.1.1:1",
            "tcp/[::1:1",
            "tcp/[a]:1",
            "tcp/[::1%1]:1",
            "tcp/[127.0.0.1]:1",
            "tcp/fe80::1%lo:1",
            "tcp/::1:80",
            "tcp/a:1/x",
            "unix",
            "unix/",
            "unix//",
            "unix/run/app.sock",
            "unix/@abstract",
            "unix/\0abstract",
            "unix//run/../app.sock",
            "unix//run/./app.sock",
            "unix//run//app.sock",
            "unix//run/app.sock/",
            "unix//run/a\nb",
            &long,
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }

    /// inet_aton(3) reads these as addresses, so a resolver may, too; as names they are nobody's.
    #[test]
    fn an_address_has_one_form() {
        for host in [
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0x7f.0x0.0x0.0x1",
            "0177.0.0.1",
            "127.0.0.01",
            "127.0.0.256",
            "127.0.0.1.2",
            "1.0x",
            "a.0",
        ] {
            assert!(Target::tcp(host, Some(80)).is_err(), "{host}");
        }
        for host in ["0x7f.example", "127.0.0.1.nip.io", "a1", "1.a", "a.0xg"] {
            assert!(Target::tcp(host, Some(80)).is_ok(), "{host}");
        }
    }
}
