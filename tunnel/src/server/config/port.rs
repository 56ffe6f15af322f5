//! The public ports besides the front, as they are configured.

use std::str::FromStr;
use std::sync::Arc;
use std::{fmt, io};

use tunnel_proto::listen::{self, Listen, ListenError};
use tunnel_proto::target::Target;
use tunnel_proto::wire::handshake;

use crate::server::config::Forward;
use crate::server::config::http::{HttpPort, HttpSocket};

/// A public port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// Every visitor gets a stream to the same target.
    Forward(Forward),
    /// Visitors name their target by SOCKS5 (RFC 1928).
    Socks5(ProxyPort),
    /// Visitors name their target by HTTP CONNECT (RFC 9110, section 9.3.6).
    Connect(ProxyPort),
    /// Visitors name their agent and target by the path of an HTTP request.
    Http(Arc<HttpPort>),
}

/// A port whose visitors name their targets, which one agent dials: `LISTEN=AGENT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyPort {
    /// Where it listens.
    pub listen: Listen,
    /// The agent's name.
    pub agent: String,
    /// Whether visitors must log in as one of the users of the access table. Without it everyone
    /// who can connect may ask for every target that the agent allows.
    pub login: bool,
}

/// Why a text is not a proxy port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyPortError {
    /// It does not have two parts, or the second is not a name.
    #[error("{0:?} is not a proxy port: write LISTEN=AGENT, as 127.0.0.1:1080=home")]
    Malformed(String),
    /// Nothing can listen there.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Why ports cannot be served as configured. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// Two ports have the same address.
    #[error("two ports listen on {0}; give each an address of its own")]
    Twice(Listen),
    /// Everyone on the network could use it.
    #[error(
        "the {kind} port {listen} needs no password, and other machines can reach it: add users \
         ([server.users.NAME] or --proxy-credentials-file), or let it listen on 127.0.0.1"
    )]
    Open {
        /// Its kind.
        kind: &'static str,
        /// Where it would listen.
        listen: Listen,
    },
    /// It is to speak TLS, and the server has none.
    #[error("the http port {0} has no certificate: the server was started without TLS")]
    NoTls(Listen),
    /// A UDP target needs a UDP port.
    #[error("{0} cannot take datagrams for a udp/ target: listen on IP:PORT")]
    NoDatagrams(Listen),
    /// It cannot be listened on.
    #[error("{port}: {error}")]
    Listen {
        /// The port.
        port: String,
        /// What the system says.
        error: io::Error,
    },
}

impl From<PortsError> for io::Error {
    fn from(error: PortsError) -> Self {
        let kind = match &error {
            PortsError::Listen { error, .. } => error.kind(),
            PortsError::Twice(_)
            | PortsError::Open { .. }
            | PortsError::NoTls(_)
            | PortsError::NoDatagrams(_) => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

/// Checks ports of a server with or without TLS, as far as possible without listening on them.
///
/// # Errors
///
/// [`PortsError`], never [`PortsError::Listen`].
pub fn validate(ports: &[Port], tls: bool) -> Result<(), PortsError> {
    for (at, port) in ports.iter().enumerate() {
        let earlier = ports.iter().take(at);
        if earlier.clone().any(|earlier| {
            (earlier.takes_datagrams() == port.takes_datagrams()
                && earlier.listen().is_where(port.listen()))
                || (earlier.shares_socket() && port.shares_socket())
        }) {
            return Err(PortsError::Twice(port.listen().clone()));
        }
        if let (true, Listen::Unix(_)) = (port.takes_datagrams(), port.listen()) {
            return Err(PortsError::NoDatagrams(port.listen().clone()));
        }
        if !port.is_guarded() && !port.listen().is_local() {
            return Err(PortsError::Open {
                kind: port.kind(),
                listen: port.listen().clone(),
            });
        }
        if let Port::Http(http) = port
            && http.socket == HttpSocket::Tls
            && !tls
        {
            return Err(PortsError::NoTls(http.listen.clone()));
        }
    }
    Ok(())
}

impl Port {
    /// Returns the name of its kind: `forward`, `socks5`, `connect` or `http`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Forward(_) => "forward",
            Self::Socks5(_) => "socks5",
            Self::Connect(_) => "connect",
            Self::Http(_) => "http",
        }
    }

    /// Returns where it listens.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        match self {
            Self::Forward(forward) => &forward.listen,
            Self::Socks5(proxy) | Self::Connect(proxy) => &proxy.listen,
            Self::Http(http) => &http.listen,
        }
    }

    /// Returns the agent that its visitors reach, unless they name one.
    #[must_use]
    pub fn agent(&self) -> Option<&str> {
        match self {
            Self::Forward(forward) => Some(&forward.agent),
            Self::Socks5(proxy) | Self::Connect(proxy) => Some(&proxy.agent),
            Self::Http(_) => None,
        }
    }

    /// Whether its visitors must log in, or cannot choose their target.
    fn is_guarded(&self) -> bool {
        match self {
            Self::Forward(_) => true,
            Self::Socks5(proxy) | Self::Connect(proxy) => proxy.login,
            Self::Http(http) => http.login,
        }
    }

    /// Whether it has the socket of [`Config::listen`](crate::server::Config::listen).
    pub(crate) fn shares_socket(&self) -> bool {
        matches!(self, Self::Http(http) if http.socket == HttpSocket::Shared)
    }

    /// Whether it is a UDP port.
    #[must_use]
    pub const fn takes_datagrams(&self) -> bool {
        match self {
            Self::Forward(forward) => matches!(forward.target, Target::Udp(_)),
            Self::Socks5(_) | Self::Connect(_) | Self::Http(_) => false,
        }
    }

    /// Returns the label of the listening socket.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Forward(forward) => format!("forward to {}", forward.destination()),
            Self::Socks5(proxy) | Self::Connect(proxy) => {
                format!("{} to {}", self.kind(), proxy.agent)
            }
            Self::Http(_) => self.kind().to_owned(),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward(forward) => write!(f, "forward {forward}"),
            Self::Socks5(proxy) | Self::Connect(proxy) => write!(f, "{} {proxy}", self.kind()),
            Self::Http(http) => write!(f, "http {http}"),
        }
    }
}

impl From<Forward> for Port {
    fn from(forward: Forward) -> Self {
        Self::Forward(forward)
    }
}

impl From<HttpPort> for Port {
    fn from(port: HttpPort) -> Self {
        Self::Http(Arc::new(port))
    }
}

impl fmt::Display for ProxyPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.listen, self.agent)
    }
}

impl ProxyPort {
    /// Reads one port, or one for each port of a range: `127.0.0.1:1080-1083=AGENT`.
    ///
    /// # Errors
    ///
    /// [`ProxyPortError`].
    pub fn parse_all(text: &str) -> Result<Vec<Self>, ProxyPortError> {
        let (places, agent) = split(text)?;
        let ports = listen::places(places)?.into_iter();
        Ok(ports.map(|listen| Self::new(listen, agent)).collect())
    }

    fn new(listen: Listen, agent: &str) -> Self {
        Self {
            listen,
            agent: agent.to_owned(),
            login: false,
        }
    }
}

/// Returns where a proxy port listens, and its agent.
fn split(text: &str) -> Result<(&str, &str), ProxyPortError> {
    let parts = text.split_once('=');
    parts
        .filter(|(_, agent)| handshake::is_name(agent))
        .ok_or_else(|| ProxyPortError::Malformed(text.to_owned()))
}

impl FromStr for ProxyPort {
    type Err = ProxyPortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (listen, agent) = split(text)?;
        Ok(Self::new(listen.parse()?, agent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(text: &str) -> ProxyPort {
        text.parse().unwrap()
    }

    #[test]
    fn proxy_ports_read_back_as_written() {
        for text in ["127.0.0.1:1080=web", "unix:/run/socks=web"] {
            assert_eq!(proxy(text).to_string(), text);
        }
        for text in [
            "",
            "127.0.0.1:1080",
            "127.0.0.1:1080=",
            "=web",
            "1080=web",
            "127.0.0.1:1=a/b",
        ] {
            assert!(text.parse::<ProxyPort>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_is_a_proxy_port_for_each_port() {
        let ports = ProxyPort::parse_all("localhost:1080-1081=web").unwrap();
        let expected = [proxy("127.0.0.1:1080=web"), proxy("127.0.0.1:1081=web")];
        assert_eq!(ports, expected);
        ProxyPort::parse_all("localhost:1081-1080=web").unwrap_err();
        ProxyPort::parse_all("localhost:1080-1081=").unwrap_err();
    }

    #[test]
    fn nothing_is_open_to_the_network_by_mistake() {
        for (listen, open) in [
            ("127.0.0.1:1=a", false),
            ("unix:/a=a", false),
            ("0.0.0.0:1=a", true),
            ("[::]:1=a", true),
        ] {
            let proxy = |login| ProxyPort {
                login,
                ..proxy(listen)
            };
            let http = |login| HttpPort {
                login,
                ..HttpPort::new(proxy(false).listen, HttpSocket::Plain)
            };
            let ports: [&dyn Fn(bool) -> Port; 3] = [
                &|login| Port::Socks5(proxy(login)),
                &|login| Port::Connect(proxy(login)),
                &|login| Port::from(http(login)),
            ];
            for port in ports {
                let checked = validate(&[port(false)], false);
                assert_eq!(
                    matches!(checked, Err(PortsError::Open { .. })),
                    open,
                    "{listen}"
                );
                validate(&[port(true)], false).unwrap();
            }
        }
    }

    #[test]
    fn each_place_has_one_port() {
        let port = |text: &str| Port::Forward(text.parse().unwrap());
        let one = port("127.0.0.1:53=web/tcp/a:1");
        let validate = |ports: &[Port]| validate(ports, false);
        validate(&[one.clone(), port("127.0.0.1:53=web/udp/a:1")]).unwrap();
        validate(&[port("127.0.0.1:0=a/tcp/a:1"), port("127.0.0.1:0=a/tcp/a:1")]).unwrap();
        let two = Port::Socks5(proxy("127.0.0.1:53=web"));
        assert!(matches!(validate(&[one, two]), Err(PortsError::Twice(_))));
        let paths = [port("unix:/a=a/tcp/a:1"), port("unix:660:/a=a/tcp/a:1")];
        assert!(matches!(validate(&paths), Err(PortsError::Twice(_))));
        let datagrams = [port("unix:/a=a/udp/a:1")];
        assert!(matches!(
            validate(&datagrams),
            Err(PortsError::NoDatagrams(_))
        ));
    }

    #[test]
    fn an_http_port_with_tls_needs_a_server_with_tls() {
        let listen: Listen = "127.0.0.1:0".parse().unwrap();
        let port = |socket| Port::from(HttpPort::new(listen.clone(), socket));
        let ports = [port(HttpSocket::Tls), port(HttpSocket::Shared)];
        validate(&ports, true).unwrap();
        assert!(matches!(validate(&ports, false), Err(PortsError::NoTls(_))));
        let twice = [port(HttpSocket::Shared), port(HttpSocket::Shared)];
        assert!(matches!(validate(&twice, true), Err(PortsError::Twice(_))));
    }
}
