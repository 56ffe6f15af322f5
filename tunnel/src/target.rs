//! Where a stream goes: `tcp/HOST:PORT`.

use std::fmt;
use std::str::FromStr;

/// A target as the opener names it. The name is not resolved: the agent does that, and its policy checks the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    host: String,
    port: u16,
}

/// Why a text is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Only `tcp` is served.
    #[error("{0:?} is not a protocol that can be dialed; write tcp/HOST:PORT")]
    Proto(String),
    /// There is no host, or it has characters that no host has.
    #[error("{0:?} is not a host name or address; write HOST:PORT, an IPv6 address in brackets")]
    Host(String),
    /// There is no port from 1 to 65535.
    #[error("{0:?} has no port from 1 to 65535; write HOST:PORT")]
    Port(String),
}

/// The longest host name in bytes (RFC 1035, section 2.3.4).
const HOST_MAX: usize = 255;

impl Target {
    /// Makes a TCP target of `HOST:PORT`, or of `HOST` when there is a default port.
    ///
    /// # Errors
    ///
    /// [`TargetError`] names the part that is wrong.
    pub fn tcp(authority: &str, default_port: Option<u16>) -> Result<Self, TargetError> {
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (host, port) = bracketed
                    .split_once(']')
                    .ok_or_else(|| TargetError::Host(authority.to_owned()))?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(TargetError::Host(authority.to_owned()));
                }
                (host, port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let is_host = !host.is_empty()
            && host.len() <= HOST_MAX
            && host.bytes().all(|byte| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':')
            });
        if !is_host {
            return Err(TargetError::Host(authority.to_owned()));
        }
        let port = match port {
            Some(text) => text.parse().ok(),
            None => default_port,
        };
        match port {
            Some(port) if port != 0 => Ok(Self {
                host: host.to_ascii_lowercase(),
                port,
            }),
            Some(_) | None => Err(TargetError::Port(authority.to_owned())),
        }
    }

    /// Returns the protocol's name.
    #[must_use]
    pub const fn proto(&self) -> &'static str {
        "tcp"
    }

    /// Returns the host, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns `HOST:PORT`.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.proto(), self.authority())
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some(("tcp", authority)) => Self::tcp(authority, None),
            Some((proto, _)) => Err(TargetError::Proto(proto.to_owned())),
            None => Err(TargetError::Proto(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_back_as_written() {
        for text in ["tcp/127.0.0.1:80", "tcp/[::1]:443", "tcp/db.internal:5432"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!(Target::tcp("web", Some(80)).unwrap().authority(), "web:80");
        assert_eq!(
            Target::tcp("[::1]", Some(80)).unwrap().authority(),
            "[::1]:80"
        );
    }

    #[test]
    fn what_is_not_a_target_is_refused() {
        for text in [
            "",
            "tcp",
            "udp/a:1",
            "tcp/:80",
            "tcp/a",
            "tcp/a:0",
            "tcp/a:65536",
            "tcp/a b:1",
            "tcp/[::1:1",
            "tcp/[a]:1",
            "tcp/::1:80",
            "tcp/a:1/x",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
