//! The destination of a visitor's request, and the request that the target gets.

use std::sync::Arc;

use hyper::body::{Body as _, Incoming};
use hyper::ext::on_informational;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, StatusCode, Uri, Version};
use percent_encoding::percent_decode_str;
use tunnel_proto::target::Target;
use tunnel_proto::wire::handshake;

use crate::io::clock::Clock;
use crate::server::front::upload::{Progress, Upload};
use crate::server::open::HttpFailure;

/// How this program names itself in `Via` (RFC 9110, section 7.6.3).
pub(super) const VIA: &str = "1.1 watertight";

/// The destination of a visitor's request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) agent: String,
    pub(crate) target: Target,
    path: String,
}

impl Address {
    /// Reads `{agent}/{scheme}/{host[:port]}[/{path}]`.
    pub(crate) fn parse(text: &str) -> Result<Self, (StatusCode, &'static str)> {
        let mut parts = text.splitn(4, '/');
        let (Some(agent), Some(scheme), Some(host)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err((
                StatusCode::NOT_FOUND,
                "write /client/{agent}/http/{host:port}/{path}",
            ));
        };
        if !handshake::is_name(agent) {
            return Err((StatusCode::BAD_REQUEST, "this is not an agent's name"));
        }
        let target = match scheme {
            "http" => Target::tcp(host, Some(80))
                .map_err(|_| (StatusCode::BAD_REQUEST, "this is not a host or host:port"))?,
            "http+unix" => percent_decode_str(host)
                .decode_utf8()
                .ok()
                .and_then(|path| path.parse().ok())
                .map(Target::Unix)
                .ok_or((
                    StatusCode::BAD_REQUEST,
                    "this is not a socket's path; write http+unix/%2Frun%2Fapp.sock/{path}",
                ))?,
            "https" => {
                return Err((
                    StatusCode::NOT_IMPLEMENTED,
                    "https to the target is not in this version; use http or a TCP forward",
                ));
            }
            _ => {
                return Err((
                    StatusCode::BAD_REQUEST,
                    "the scheme is http, or http+unix for a Unix socket",
                ));
            }
        };
        Ok(Self {
            agent: agent.to_owned(),
            target,
            path: format!("/{}", parts.next().unwrap_or_default()),
        })
    }

    /// Reads the absolute form of a request to a proxy: `http://HOST[:PORT][/PATH]`.
    pub(super) fn absolute(agent: &str, uri: &Uri) -> Result<Self, (StatusCode, &'static str)> {
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                let why = "https takes CONNECT HOST:PORT; here is http only";
                return Err((StatusCode::NOT_IMPLEMENTED, why));
            }
            _ => return Err((StatusCode::BAD_REQUEST, "the scheme is http")),
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let target = Target::tcp(authority, Some(80)).map_err(|_| {
            let why = "write http://HOST or http://HOST:PORT, an IPv6 address in brackets";
            (StatusCode::BAD_REQUEST, why)
        })?;
        Ok(Self {
            agent: agent.to_owned(),
            target,
            path: uri.path().to_owned(),
        })
    }
}

/// Makes the request that the target gets. Each request has a stream and a connection to the target
/// of its own. `protocols` are those that the visitor asks to change to.
pub(super) fn rewrite(
    clock: Clock,
    request: Request<Incoming>,
    address: &Address,
    protocols: Option<&HeaderValue>,
) -> Result<(Request<Upload>, Arc<Progress>), HttpFailure> {
    let (mut parts, body) = request.into_parts();
    let expects = parts.version == Version::HTTP_11
        && !body.is_end_stream()
        && has_token(&parts.headers, &header::EXPECT, "100-continue");
    let takes_trailers = has_token(&parts.headers, &header::TE, "trailers");
    let path_and_query = match parts.uri.query() {
        Some(query) => format!("{}?{query}", address.path),
        None => address.path.clone(),
    };
    let bad = |why: &str| (StatusCode::BAD_REQUEST, why.to_owned());
    parts.uri = path_and_query
        .parse::<Uri>()
        .map_err(|_| bad("the path is malformed"))?;
    parts.version = Version::HTTP_11;
    strip_hop_by_hop(&mut parts.headers);
    if !expects {
        parts.headers.remove(header::EXPECT);
    }
    let host = match &address.target {
        Target::Tcp(endpoint) | Target::Udp(endpoint) => {
            let authority = endpoint.to_string();
            let host = authority.strip_suffix(":80").unwrap_or(&authority);
            HeaderValue::from_str(host).map_err(|_| bad("the host is malformed"))?
        }
        // A Unix socket has no host name. Servers accept this one.
        Target::Unix(_) => HeaderValue::from_static("localhost"),
    };
    parts.headers.insert(header::HOST, host);
    if takes_trailers {
        let trailers = HeaderValue::from_static("trailers");
        parts.headers.insert(header::TE, trailers);
    }
    if let Some(protocols) = protocols {
        parts.headers.insert(header::UPGRADE, protocols.clone());
    }
    let connection = HeaderValue::from_static(match (protocols, takes_trailers) {
        (None, false) => "close",
        (None, true) => "close, te",
        (Some(_), false) => "upgrade",
        (Some(_), true) => "upgrade, te",
    });
    parts.headers.insert(header::CONNECTION, connection);
    parts
        .headers
        .append(header::VIA, HeaderValue::from_static(VIA));
    let (upload, progress) = Upload::new(clock, body, expects);
    let mut request = Request::from_parts(parts, upload);
    if expects {
        let progress = Arc::clone(&progress);
        on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                progress.go_on();
            }
        });
    }
    Ok((request, progress))
}

/// Whether a header's comma-separated values contain a token.
pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Removes the hop-by-hop headers (RFC 9110, section 7.6.1).
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    ] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let address = Address::parse("web/http/127.0.0.1:9000/a/b").unwrap();
        assert_eq!(
            (address.agent.as_str(), address.path.as_str()),
            ("web", "/a/b")
        );
        assert_eq!(address.target.to_string(), "tcp/127.0.0.1:9000");
        let default = Address::parse("web/http/host").unwrap();
        assert_eq!(default.target.to_string(), "tcp/host:80");
        assert_eq!(Address::parse("web/http/host").unwrap().path, "/");
        let socket = Address::parse("web/http+unix/%2frun%2Fa%20b.sock/v1/x%2Fy").unwrap();
        assert_eq!(socket.target.to_string(), "unix//run/a b.sock");
        assert_eq!(socket.path, "/v1/x%2Fy");
        for (text, status) in [
            ("web/http+unix/run", 400),
            ("web/http+unix/%2Frun%2F..%2Fx", 400),
            ("web/http+unix/%2Frun%00", 400),
            ("web/http+unix/%2F%ff", 400),
            ("web", 404),
            ("web/http", 404),
            ("web/https/a", 501),
            ("web/ftp/a", 400),
            ("w b/http/a", 400),
            ("web/http/a b", 400),
        ] {
            assert_eq!(
                Address::parse(text).unwrap_err().0.as_u16(),
                status,
                "{text}"
            );
        }
    }

    #[test]
    fn absolute_forms_are_read() {
        for (text, target, path) in [
            ("http://a.example", "tcp/a.example:80", "/"),
            ("http://a.example/x%2Fy?z", "tcp/a.example:80", "/x%2Fy"),
            ("HTTP://[::1]:81/", "tcp/[::1]:81", "/"),
        ] {
            let address = Address::absolute("web", &text.parse().unwrap()).unwrap();
            assert_eq!(address.target.to_string(), target, "{text}");
            assert_eq!(address.path, path, "{text}");
        }
        for (text, status) in [
            ("https://a", 501),
            ("ftp://a", 400),
            ("http://anna:secret@a/", 400),
            ("http://a:0/", 400),
            ("a:80", 400),
        ] {
            let refused = Address::absolute("web", &text.parse().unwrap());
            assert_eq!(refused.unwrap_err().0.as_u16(), status, "{text}");
        }
    }

    #[test]
    fn what_concerns_one_hop_is_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-a, close"),
            ("x-a", "1"),
            ("te", "trailers"),
            ("x-b", "2"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 1);
        assert!(headers.contains_key("x-b"));
    }
}
