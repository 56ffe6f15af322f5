//! A host and a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::target::TargetError;

/// `HOST:PORT` as somebody wrote it: an address, or a name in lower case and without its trailing
/// dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// The longest host name in bytes (RFC 1035, section 2.3.4).
const HOST_MAX: usize = 255;

impl Endpoint {
    /// Reads `HOST:PORT`, or `HOST` when there is a default port.
    ///
    /// # Errors
    ///
    /// [`TargetError`] names the part that is wrong.
    pub fn parse(authority: &str, default_port: Option<u16>) -> Result<Self, TargetError> {
        let no_host = || TargetError::Host(authority.to_owned());
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (host, port) = bracketed.split_once(']').ok_or_else(no_host)?;
                host.parse::<Ipv6Addr>().map_err(|_| no_host())?;
                let port = match port.strip_prefix(':') {
                    Some(port) => Some(port),
                    None if port.is_empty() => None,
                    None => return Err(no_host()),
                };
                (host.to_ascii_lowercase(), port)
            }
            None => {
                let (host, port) = match authority.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (authority, None),
                };
                (name(host).ok_or_else(no_host)?, port)
            }
        };
        let port = match port {
            // `parse` would take a sign.
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Some(_) => None,
            None => default_port,
        };
        match port {
            Some(port) if port != 0 => Ok(Self { host, port }),
            Some(_) | None => Err(TargetError::Port(authority.to_owned())),
        }
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

    /// Returns the host's address, when it is one and not a name.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

/// Returns the one form of an IPv4 address or a name.
fn name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_name = text.len() <= HOST_MAX && text.split('.').all(is_label);
    let last = text.rsplit('.').next().unwrap_or_default();
    // A name does not end in a number (URL standard, "ends in a number checker"): it would be an
    // address to some and not to others.
    let ends_in_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .or_else(|| last.strip_prefix("0X"))
            .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let is_host = is_name && (!ends_in_number || text.parse::<std::net::Ipv4Addr>().is_ok());
    is_host.then(|| text.to_ascii_lowercase())
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
