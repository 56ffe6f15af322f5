//! The URL of a server.

use std::fmt;
use std::str::FromStr;

use tokio_tungstenite::tungstenite::http::Uri;
use tunnel_proto::target::Endpoint;

/// Where a server takes agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    uri: Uri,
    endpoint: Endpoint,
}

impl ServerUrl {
    pub(crate) const fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns `HOST:PORT`.
    #[must_use]
    pub fn authority(&self) -> String {
        self.endpoint.to_string()
    }

    /// Returns the host, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.endpoint.host()
    }

    /// Whether it is this machine by its very name or address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let address = self.endpoint.address();
        self.host() == "localhost" || address.is_some_and(|address| address.is_loopback())
    }

    /// Whether TLS is asked for.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.uri.scheme_str() == Some("wss")
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

/// Why a text is not a server's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerUrlError {
    /// It is not `wss://HOST[:PORT]/PATH` or `ws://HOST[:PORT]/PATH`.
    #[error(
        "{0:?} is not a server's URL: write wss://HOST:PORT/connect, or ws://HOST:PORT/connect \
         without TLS"
    )]
    Malformed(String),
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ServerUrlError::Malformed(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| malformed())?;
        let default_port = match uri.scheme_str() {
            Some("ws") => 80,
            Some("wss") => 443,
            Some(_) | None => return Err(malformed()),
        };
        let authority = uri.authority().ok_or_else(malformed)?;
        if authority.as_str().contains('@') {
            return Err(malformed());
        }
        let endpoint =
            Endpoint::parse(authority.as_str(), Some(default_port)).map_err(|_| malformed())?;
        Ok(Self { uri, endpoint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_their_default_ports() {
        for (text, host, port, secure) in [
            ("ws://a/connect", "a", 80, false),
            ("wss://a/connect", "a", 443, true),
            ("wss://[::1]:8443/x", "::1", 8443, true),
        ] {
            let url: ServerUrl = text.parse().unwrap();
            let endpoint = url.endpoint();
            assert_eq!((endpoint.host(), endpoint.port()), (host, port), "{text}");
            assert_eq!(
                (url.is_secure(), url.to_string()),
                (secure, text.to_owned())
            );
        }
        for wrong in [
            "",
            "a",
            "https://a/connect",
            "wss://",
            "wss://u@a/",
            "wss://a:0/",
        ] {
            let error = wrong.parse::<ServerUrl>().unwrap_err();
            assert_eq!(error, ServerUrlError::Malformed(wrong.to_owned()));
        }
    }
}
