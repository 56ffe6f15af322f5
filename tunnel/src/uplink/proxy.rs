//! The HTTP or SOCKS5 proxy on the way to the server, found as curl finds it.
//!
//! `http_proxy` is for `ws://`, `https_proxy` for `wss://`, `all_proxy` for both; lower case goes
//! before capitals. The first that is set counts, and an empty one means no proxy. Unlike with curl
//! `HTTP_PROXY` counts, too, since an agent is no CGI program, and a server on this machine is
//! reached without a proxy, which would look for it on its own.

use std::fmt;

use data_encoding::BASE64;
use percent_encoding::percent_decode_str;

mod bypass;
mod exchange;
mod http;
mod socks5;

use tunnel_proto::target::Endpoint;

use crate::io::socket::Socket;
pub(crate) use crate::uplink::proxy::exchange::TunnelError;
use crate::uplink::url::ServerUrl;

/// A proxy that opens connections.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    endpoint: Endpoint,
    kind: Kind,
}

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    /// CONNECT (RFC 9110, section 9.3.6).
    Http {
        /// The value of `Proxy-Authorization`. It is never printed.
        authorization: Option<String>,
    },
    /// SOCKS5 (RFC 1928).
    Socks5 {
        login: Option<Login>,
        /// Whether the proxy resolves the server's name (`socks5h`).
        resolves: bool,
    },
}

/// A user and a password. They are never printed.
#[derive(Clone, PartialEq, Eq)]
struct Login {
    user: String,
    password: String,
}

/// Why an environment variable does not name a proxy. Its value may hold a password and is not
/// told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{variable} does not name an HTTP proxy or a SOCKS5 proxy: write \
     http://[USER:PASSWORD@]HOST[:PORT], or socks5h:// (socks5:// to resolve the server's name \
     here), special characters as %XX"
)]
pub struct ProxyError {
    variable: &'static str,
}

/// The port of a proxy that names none (curl's `CURL_DEFAULT_PROXY_PORT`).
const DEFAULT_PORT: u16 = 1080;

impl Proxy {
    /// Returns the proxy that environment variables name for `server`, if one is to be used.
    ///
    /// # Errors
    ///
    /// [`ProxyError`] names the variable that is wrong.
    pub fn for_server(
        server: &ServerUrl,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ProxyError> {
        let host = server.endpoint();
        let exceptions = ["no_proxy", "NO_PROXY"].into_iter().find_map(&variable);
        if bypass::applies(host, exceptions.as_deref().unwrap_or_default()) {
            return Ok(None);
        }
        let found = variables(server.is_secure())
            .into_iter()
            .find_map(|name| Some((name, variable(name)?)));
        match found {
            None => Ok(None),
            Some((_, url)) if url.is_empty() => Ok(None),
            Some((variable, url)) => match Self::parse(&url) {
                Some(proxy) => Ok(Some(proxy)),
                None => Err(ProxyError { variable }),
            },
        }
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        let user = user.filter(|user| !user.is_empty());
        let kind = match scheme.to_ascii_lowercase().as_str() {
            "http" => Kind::Http {
                authorization: match user {
                    Some(user) => Some(basic(user)?),
                    None => None,
                },
            },
            scheme @ ("socks5" | "socks5h") => Kind::Socks5 {
                login: match user {
                    Some(user) => Some(socks5_login(user)?),
                    None => None,
                },
                resolves: scheme == "socks5h",
            },
            _ => return None,
        };
        Some(Self {
            endpoint: Endpoint::parse(authority, Some(DEFAULT_PORT)).ok()?,
            kind,
        })
    }

    /// Whether the server's name must be resolved before the proxy is asked.
    pub(crate) const fn takes_addresses(&self) -> bool {
        match self.kind {
            Kind::Http { .. } => false,
            Kind::Socks5 { resolves, .. } => !resolves,
        }
    }
}

const fn variables(secure: bool) -> [&'static str; 4] {
    if secure {
        ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
    } else {
        ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
    }
}

/// Returns the credentials of `USER[:PASSWORD]` (RFC 7617, section 2).
fn basic(user_info: &str) -> Option<String> {
    let Login { user, password } = login(user_info)?;
    let is_sendable =
        !user.contains(':') && !user.chars().chain(password.chars()).any(char::is_control);
    let encode = || BASE64.encode(format!("{user}:{password}").as_bytes());
    is_sendable.then(|| format!("Basic {}", encode()))
}

/// Returns the user and the password of `USER[:PASSWORD]`.
fn login(user_info: &str) -> Option<Login> {
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let decode = |text| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    Some(Login {
        user: decode(user)?,
        password: decode(password)?,
    })
}

/// RFC 1929, section 2, has 1 to 255 bytes for each. curl sends an empty password, too.
fn socks5_login(user_info: &str) -> Option<Login> {
    let login = login(user_info)?;
    let fits = (1..=255).contains(&login.user.len()) && login.password.len() <= 255;
    fits.then_some(login)
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// Asks the proxy at the other end of `socket` for a connection to `server`. The caller has the
/// deadline.
pub(crate) async fn tunnel(
    proxy: &Proxy,
    socket: Socket,
    server: &Endpoint,
) -> Result<Socket, TunnelError> {
    match &proxy.kind {
        Kind::Http { authorization } => {
            http::connect(proxy, authorization.as_ref(), socket, server).await
        }
        Kind::Socks5 { login, .. } => socks5::tunnel(proxy, login.as_ref(), socket, server).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(server: &str, variables: &[(&str, &str)]) -> Result<Option<String>, ProxyError> {
        let value = |name: &str| {
            let mut values = variables.iter().filter(|(variable, _)| *variable == name);
            values.next().map(|(_, value)| (*value).to_owned())
        };
        let proxy = Proxy::for_server(&server.parse().unwrap(), value)?;
        Ok(proxy.map(|proxy| proxy.to_string()))
    }

    #[test]
    fn the_first_variable_that_is_set_counts() {
        let server = "ws://tunnel.example:8123/connect";
        for (variables, proxy) in [
            (vec![], None),
            (
                vec![("http_proxy", "http://a:1"), ("HTTP_PROXY", "http://b:1")],
                Some("a:1"),
            ),
            (
                vec![("HTTP_PROXY", "http://b:1"), ("all_proxy", "http://c:1")],
                Some("b:1"),
            ),
            (
                vec![("all_proxy", "http://c:1"), ("ALL_PROXY", "http://d:1")],
                Some("c:1"),
            ),
            (vec![("ALL_PROXY", "http://d:1")], Some("d:1")),
            (vec![("http_proxy", ""), ("ALL_PROXY", "http://d:1")], None),
            (
                vec![("https_proxy", "http://a:1"), ("HTTPS_PROXY", "http://a:1")],
                None,
            ),
            (
                vec![("http_proxy", "http://a:1"), ("no_proxy", "tunnel.example")],
                None,
            ),
            (
                vec![("http_proxy", "http://a:1"), ("NO_PROXY", "tunnel.example")],
                None,
            ),
            (
                vec![
                    ("http_proxy", "http://a:1"),
                    ("no_proxy", ""),
                    ("NO_PROXY", "*"),
                ],
                Some("a:1"),
            ),
        ] {
            assert_eq!(
                found(server, &variables),
                Ok(proxy.map(str::to_owned)),
                "{variables:?}"
            );
        }
        let local = [("http_proxy", "http://a:1")];
        assert_eq!(found("ws://127.0.0.1:8123/connect", &local), Ok(None));
        assert_eq!(variables(true)[..2], ["https_proxy", "HTTPS_PROXY"]);
    }

    #[test]
    fn urls_are_read_and_their_secrets_are_not_told() {
        for (url, proxy, credentials) in [
            ("http://proxy.example:3128", "proxy.example:3128", None),
            ("HTTP://proxy.example/", "proxy.example:1080", None),
            ("proxy.example:3128", "proxy.example:3128", None),
            ("http://[::1]:3128", "[::1]:3128", None),
            ("http://@a:1", "a:1", None),
            // The example of RFC 7617, section 2.
            (
                "http://Aladdin:open%20sesame@a:1",
                "a:1",
                Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
            ),
            ("http://user@a:1", "a:1", Some("Basic dXNlcjo=")),
            ("http://u:p@ss:w@a:1", "a:1", Some("Basic dTpwQHNzOnc=")),
        ] {
            let parsed = Proxy::parse(url).unwrap();
            assert_eq!(parsed.to_string(), proxy, "{url}");
            let authorization = credentials.map(str::to_owned);
            assert!(parsed.kind == Kind::Http { authorization }, "{url}");
            assert_eq!(format!("{parsed:?}"), format!("Proxy({proxy})"));
        }
        for url in [
            "http://",
            "https://u:canary@a:1",
            "socks4://u:canary@a:1",
            "socks5h://:canary@a:1",
            "http://u:canary@a:0",
            "http://u:canary@a b",
            "http://u%3av:canary@a",
            "http://u:canary%0d%0a@a",
            "http://u:canary%ff@a",
            "http://u:canary@a/path",
        ] {
            let error = found("ws://b/", &[("all_proxy", url)]).unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(
                told.contains("all_proxy") && !told.contains("canary"),
                "{told}"
            );
        }
    }
}
