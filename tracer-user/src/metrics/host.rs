//! The host names that requests may use, as at the tunnel's admin port.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Refuses requests by a host name that is neither `localhost` nor `own`, the name of this machine.
/// A web page whose own name is made to resolve to this machine (DNS rebinding) then cannot have a
/// browser read the port.
pub(super) async fn guard(State(own): State<String>, request: Request, next: Next) -> Response {
    match check(request.headers(), request.uri(), request.version(), &own) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Returns the name of this machine.
pub(super) fn own() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}

/// Checks the host that a request names. When `evil.example` is made to resolve to this machine,
/// the browser still names `evil.example`.
fn check(
    headers: &HeaderMap,
    uri: &Uri,
    version: Version,
    own: &str,
) -> Result<(), (StatusCode, &'static str)> {
    let mut named = headers.get_all(header::HOST).iter();
    let first = named.next();
    if named.next().is_some() {
        return Err((StatusCode::BAD_REQUEST, "there is more than one Host\n"));
    }
    if first.is_none() && version != Version::HTTP_10 {
        return Err((StatusCode::BAD_REQUEST, "there is no Host\n"));
    }
    let named = first.map(|value| value.as_bytes());
    let absolute = uri.authority().map(|it| it.as_str().as_bytes());
    for authority in named.into_iter().chain(absolute) {
        let Ok(authority) = Authority::try_from(authority) else {
            return Err((StatusCode::BAD_REQUEST, "the Host is malformed\n"));
        };
        if !is_ours(authority.host(), own) {
            let why = "ask by address, as localhost, or by this machine's host name\n";
            return Err((StatusCode::MISDIRECTED_REQUEST, why));
        }
    }
    Ok(())
}

fn is_ours(host: &str, own: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host).parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || host.eq_ignore_ascii_case(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uri: &'static str, version: Version, named: &[&'static str]) -> Result<(), u16> {
        let hosts = named
            .iter()
            .map(|host| (header::HOST, host.parse().unwrap()));
        let uri = Uri::from_static(uri);
        let result = check(&HeaderMap::from_iter(hosts), &uri, version, "node-1");
        result.map_err(|(status, _)| status.as_u16())
    }

    #[test]
    fn only_addresses_localhost_and_the_machines_name_are_ours() {
        for host in [
            "127.0.0.1",
            "10.1.2.3:9090",
            "[::1]:9090",
            "LocalHost:9090",
            "Node-1:9090",
        ] {
            assert_eq!(status("/", Version::HTTP_11, &[host]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:9090",
            "node-1.evil.example",
        ] {
            assert_eq!(status("/", Version::HTTP_11, &[host]), Err(421), "{host}");
        }
        for named in [&["a b"][..], &[""], &["localhost", "localhost"], &[]] {
            assert_eq!(status("/", Version::HTTP_11, named), Err(400), "{named:?}");
        }
        assert_eq!(status("/", Version::HTTP_10, &[]), Ok(()));
        let absolute = "http://evil.example/metrics";
        assert_eq!(status(absolute, Version::HTTP_11, &["localhost"]), Err(421));
    }
}
