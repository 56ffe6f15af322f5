//! Which web pages may have a browser send requests.

use std::fmt;
use std::str::FromStr;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Request, Uri};

/// The origin of a web page, as `https://app.example` (RFC 6454).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    authority: String,
}

/// A text is not an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the origin of a page: write http://HOST[:PORT] or https://HOST[:PORT]")]
pub struct OriginError(String);

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || OriginError(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => ":80",
            "https" => ":443",
            _ => return Err(wrong()),
        };
        let authority = rest.to_ascii_lowercase();
        let is_authority = authority
            .parse::<Authority>()
            .is_ok_and(|parsed| !parsed.host().is_empty() && !authority.contains('@'));
        if !is_authority || text.parse::<Uri>().is_err() {
            return Err(wrong());
        }
        let short = authority.strip_suffix(default_port).unwrap_or(&authority);
        let authority = short.to_owned();
        Ok(Self { scheme, authority })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses a request that a page of another site has a browser send, unless the page is of one of
/// `allowed`. Programs other than browsers send neither header.
pub(crate) fn check<B>(request: &Request<B>, allowed: &[Origin]) -> Result<(), &'static str> {
    const FOREIGN: &str =
        "a page of another site may not ask here; --http-origin allows its origin";
    let headers = request.headers();
    let origins = headers.get_all(header::ORIGIN).iter();
    let is_allowed = |origin: &Origin| allowed.contains(origin);
    let mut listed = false;
    for origin in origins {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse().ok());
        match origin {
            Some(origin) if is_allowed(&origin) => listed = true,
            Some(origin) if is_same(&origin, request) => {}
            Some(_) | None => return Err(FOREIGN),
        }
    }
    let is_foreign = |site: &HeaderValue| !matches!(site.as_bytes(), b"same-origin" | b"none");
    let foreign = headers.get_all(FETCH_SITE).iter().any(is_foreign);
    if foreign && !listed {
        return Err(FOREIGN);
    }
    Ok(())
}

/// Whether the page is of the host that the request names. The scheme is left out, because a proxy
/// in front may speak TLS.
fn is_same<B>(origin: &Origin, request: &Request<B>) -> bool {
    host(request.headers()).is_some_and(|host| {
        let default_port = if origin.scheme == "http" {
            ":80"
        } else {
            ":443"
        };
        let host = host.to_ascii_lowercase();
        host.strip_suffix(default_port).unwrap_or(&host) == origin.authority
    })
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_read_back_as_written_without_the_default_port() {
        for (text, origin) in [
            ("https://App.example", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("http://127.0.0.1:8123", "http://127.0.0.1:8123"),
            ("http://[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), origin);
        }
        for wrong in [
            "null",
            "",
            "app.example",
            "ftp://a",
            "http://",
            "http://a/b",
            "http://a b",
            "http://u@a",
        ] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_pages_of_this_site_and_of_listed_origins_may_ask() {
        let allowed = ["https://app.example".parse().unwrap()];
        let ask = |headers: &[(&'static str, &str)]| {
            let mut request = Request::get("/").header("host", "Tunnel.example:8123");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            check(&request.body(()).unwrap(), &allowed).is_ok()
        };
        for headers in [
            &[][..],
            &[("origin", "http://tunnel.example:8123")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin")],
            &[("origin", "https://app.example")],
            &[
                ("origin", "https://app.example"),
                ("sec-fetch-site", "cross-site"),
            ],
        ] {
            assert!(ask(headers), "{headers:?}");
        }
        for headers in [
            &[("origin", "http://evil.example")][..],
            &[("origin", "http://tunnel.example")],
            &[("origin", "http://app.example")],
            &[("origin", "null")],
            &[("origin", "")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "navigate"),
            ],
            &[
                ("origin", "https://app.example"),
                ("origin", "http://evil.example"),
            ],
        ] {
            assert!(!ask(headers), "{headers:?}");
        }
    }
}
