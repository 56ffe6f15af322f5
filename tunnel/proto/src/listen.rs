//! Where a public port listens: `IP:PORT`, `localhost:PORT`, `:PORT`, or `unix:[MODE:]/PATH`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a public port listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// An address; port 0 takes a free port.
    Inet(SocketAddr),
    /// The file of a Unix socket.
    Unix(ListenPath),
}

/// The file of a listening Unix socket and who may connect to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenPath {
    path: PathBuf,
    mode: u32,
}

/// Why nothing can listen there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// It is neither `IP:PORT` nor a path.
    #[error(
        "{0:?} is not an address to listen on: write IP:PORT (an IPv6 address in brackets), \
         localhost:PORT, :PORT for all IPv4 addresses, or unix:/PATH"
    )]
    Address(String),
    /// It is not a range of ports.
    #[error(
        "{0:?} is not a range of ports: write FIRST-LAST, from 1 to 65535 and at most {max} ports",
        max = PortRange::MAX
    )]
    Range(String),
    /// It is not a path that a socket can have.
    #[error(
        "{0:?} cannot be the path of a listening socket: write an absolute path of at most {max} bytes without control characters and '='",
        max = ListenPath::MAX
    )]
    Path(String),
    /// The mode is not one.
    #[error(
        "{0:?} is not the mode of a socket's file: write three octal digits, as unix:660:/PATH"
    )]
    Mode(String),
}

impl ListenPath {
    /// The longest path in bytes (`unix(7)`, sun_path with its NUL).
    pub const MAX: usize = 107;

    /// The mode of a file for which nobody asked for another: its user alone may connect.
    pub const MODE: u32 = 0o600;

    /// Takes the absolute path of a socket's file, and its mode: the permission bits of `chmod(2)`.
    ///
    /// # Errors
    ///
    /// [`ListenError::Path`] or [`ListenError::Mode`].
    pub fn new(path: &str, mode: u32) -> Result<Self, ListenError> {
        let is_path = path.len() <= Self::MAX
            && path.len() > 1
            && path.starts_with('/')
            && !path.ends_with('/')
            && !path.contains(|letter: char| letter.is_control() || letter == '=');
        if !is_path {
            return Err(ListenError::Path(path.to_owned()));
        }
        if mode > 0o777 {
            return Err(ListenError::Mode(format!("{mode:o}")));
        }
        Ok(Self {
            path: PathBuf::from(path),
            mode,
        })
    }

    /// Returns the path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the mode of the file.
    #[must_use]
    pub const fn mode(&self) -> u32 {
        self.mode
    }
}

impl Listen {
    /// Returns the address, if it is not a file.
    #[must_use]
    pub const fn inet(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether only this machine can connect.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Inet(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// Whether both are the same place, whatever the mode; a port that the system chooses is never
    /// the same.
    pub fn is_where(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inet(one), Self::Inet(other)) => one == other && one.port() != 0,
            (Self::Unix(one), Self::Unix(other)) => one.path == other.path,
            (Self::Inet(_), Self::Unix(_)) | (Self::Unix(_), Self::Inet(_)) => false,
        }
    }
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::Inet(address)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(ListenPath { path, mode }) if *mode == ListenPath::MODE => {
                write!(f, "unix:{}", path.display())
            }
            Self::Unix(ListenPath { path, mode }) => {
                write!(f, "unix:{mode:03o}:{}", path.display())
            }
        }
    }
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(place) = text.strip_prefix("unix:") else {
            return inet(text).map(Self::Inet);
        };
        let (mode, path) = match place.split_once(':') {
            Some((mode, path)) if !mode.starts_with('/') => {
                let is_octal = mode.len() <= 4 && mode.bytes().all(|digit| digit.is_ascii_digit());
                let number = u32::from_str_radix(mode, 8).ok().filter(|_| is_octal);
                (
                    number.ok_or_else(|| ListenError::Mode(mode.to_owned()))?,
                    path,
                )
            }
            Some(_) | None => (ListenPath::MODE, place),
        };
        ListenPath::new(path, mode).map(Self::Unix)
    }
}

/// Reads the address of a listener: `IP:PORT`, `localhost:PORT` (which is 127.0.0.1), or `:PORT` for
/// all IPv4 addresses. No name is looked up.
///
/// # Errors
///
/// [`ListenError::Address`].
pub fn inet(text: &str) -> Result<SocketAddr, ListenError> {
    let named = || {
        let (host, port) = text.split_once(':')?;
        let is_port = !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
        let port = port.parse().ok().filter(|_| is_port)?;
        let ip = match host {
            "" => Ipv4Addr::UNSPECIFIED,
            _ if host.eq_ignore_ascii_case("localhost") => Ipv4Addr::LOCALHOST,
            _ => return None,
        };
        Some(SocketAddr::new(IpAddr::V4(ip), port))
    };
    let address = text.parse().ok().or_else(named);
    address.ok_or_else(|| ListenError::Address(text.to_owned()))
}

/// Ports in a row: `FIRST-LAST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The most ports of a range.
    pub const MAX: u16 = 1024;

    /// Splits a range off the end of `ADDRESS:FIRST-LAST`, and returns it with the address. Returns
    /// `None` if there is no range.
    ///
    /// # Errors
    ///
    /// [`ListenError::Range`].
    pub fn split(text: &str) -> Result<Option<(&str, Self)>, ListenError> {
        let Some((address, ports)) = text.rsplit_once(':') else {
            return Ok(None);
        };
        let Some((first, last)) = ports.split_once('-') else {
            return Ok(None);
        };
        if !ports.starts_with(|letter: char| letter.is_ascii_digit()) {
            return Ok(None);
        }
        let port = |text: &str| {
            let is_port = text.bytes().all(|digit| digit.is_ascii_digit());
            text.parse::<u16>().ok().filter(|port| is_port && *port > 0)
        };
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last && last - first < Self::MAX => {
                Ok(Some((address, Self { first, last })))
            }
            _ => Err(ListenError::Range(ports.to_owned())),
        }
    }

    /// Returns how many ports there are.
    #[must_use]
    pub const fn count(self) -> u16 {
        self.last - self.first + 1
    }

    /// Returns the ports in their order.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

/// Reads one place, or one for each port of a range: `127.0.0.1:8000-8003`.
///
/// # Errors
///
/// [`ListenError`].
pub fn places(text: &str) -> Result<Vec<Listen>, ListenError> {
    let range = match text.strip_prefix("unix:") {
        Some(_) => None,
        None => PortRange::split(text)?,
    };
    let Some((address, range)) = range else {
        return Ok(vec![text.parse()?]);
    };
    let places = range
        .ports()
        .map(|port| format!("{address}:{port}").parse());
    places.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_back_as_written() {
        for text in [
            "127.0.0.1:80",
            "[::1]:0",
            "unix:/run/a.sock",
            "unix:660:/run/a.sock",
            "unix:/run/a:b",
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        let written = "unix:0600:/run/a".parse::<Listen>().unwrap();
        assert_eq!(written.to_string(), "unix:/run/a");
    }

    #[test]
    fn what_is_no_place_is_refused() {
        let long = format!("unix:/{}", "a".repeat(ListenPath::MAX));
        for text in [
            "",
            "80",
            "localhost",
            "localhost:",
            "localhost:+80",
            "localhost:65536",
            "localhost.example:80",
            "example:80",
            ":",
            "::80",
            "127.0.0.1:80-81",
            "unix",
            "unix:",
            "unix:/",
            "unix:a",
            "unix:/a/",
            "unix:/a=b",
            "unix:/a\nb",
            "unix:888:/a",
            "unix:1777:/a",
            "unix:+60:/a",
            "unix::/a",
            &long,
        ] {
            assert!(text.parse::<Listen>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn localhost_and_a_port_alone_are_addresses() {
        for (text, address) in [
            ("localhost:80", "127.0.0.1:80"),
            ("LocalHost:0", "127.0.0.1:0"),
            (":80", "0.0.0.0:80"),
        ] {
            let listen = text.parse::<Listen>().unwrap();
            assert_eq!(listen.to_string(), address, "{text}");
        }
    }

    #[test]
    fn a_range_is_a_place_for_each_port() {
        let read = |text: &str| {
            let places = places(text)?;
            Ok::<_, ListenError>(places.iter().map(Listen::to_string).collect::<Vec<_>>())
        };
        for (text, expected) in [
            ("127.0.0.1:80", &["127.0.0.1:80"][..]),
            ("unix:/run/a:1-2", &["unix:/run/a:1-2"]),
            ("127.0.0.1:80-80", &["127.0.0.1:80"]),
            ("[::1]:80-81", &["[::1]:80", "[::1]:81"]),
            (
                "localhost:65534-65535",
                &["127.0.0.1:65534", "127.0.0.1:65535"],
            ),
            (":1-2", &["0.0.0.0:1", "0.0.0.0:2"]),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        assert_eq!(read("127.0.0.1:1-1024").unwrap().len(), 1024);
        for text in [
            "127.0.0.1:0-1",
            "127.0.0.1:2-1",
            "127.0.0.1:1-",
            "127.0.0.1:1-2-3",
            "127.0.0.1:1-+2",
            "127.0.0.1:1-65536",
            "127.0.0.1:1-1025",
            "example:1-2",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_place_is_local_if_no_other_machine_reaches_it() {
        for (text, local) in [
            ("127.0.0.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("unix:/a", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().is_local(), local, "{text}");
        }
    }
}
