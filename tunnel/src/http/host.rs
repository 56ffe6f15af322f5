//! The host names that requests may use.

use std::net::IpAddr;

use hyper::http::uri::Authority;
use hyper::{Request, StatusCode, Version, header};

/// Checks the host that a request names. When `evil.example` is made to resolve to this machine,
/// the browser still names `evil.example`.
///
/// `option` is what adds a name.
pub(crate) fn check<B>(
    request: &Request<B>,
    hosts: &[String],
    option: &str,
) -> Result<(), (StatusCode, String)> {
    let refuse = |why: &str| Err((StatusCode::BAD_REQUEST, format!("{why}\n")));
    let mut named = request.headers().get_all(header::HOST).iter();
    let first = named.next();
    if named.next().is_some() {
        return refuse("there is more than one Host");
    }
    if first.is_none() && request.version() != Version::HTTP_10 {
        return refuse("there is no Host");
    }
    let named = first.map(|value| value.as_bytes());
    let absolute = request.uri().authority().map(|it| it.as_str().as_bytes());
    for authority in named.into_iter().chain(absolute) {
        let Ok(authority) = Authority::try_from(authority) else {
            return refuse("the Host is malformed");
        };
        if !is_ours(authority.host(), hosts) {
            let status = StatusCode::MISDIRECTED_REQUEST;
            let why = format!("ask by address or as localhost, or set {option} to this name\n");
            return Err((status, why));
        }
    }
    Ok(())
}

fn is_ours(host: &str, hosts: &[String]) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host).parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|known| host.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uri: &str, version: Version, named: &[&str]) -> Result<(), u16> {
        let mut request = Request::get(uri).version(version);
        for host in named {
            request = request.header(header::HOST, *host);
        }
        let hosts = ["tunnel.internal".to_owned()];
        let result = check(&request.body(()).unwrap(), &hosts, "admin-host");
        result.map_err(|(status, _)| status.as_u16())
    }

    #[test]
    fn addresses_localhost_and_listed_names_are_ours() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9090",
            "10.1.2.3:9090",
            "[::1]:9090",
            "localhost:9090",
            "LocalHost",
            "Tunnel.Internal:9090",
        ] {
            assert_eq!(status("/", Version::HTTP_11, &[host]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:9090",
            "tunnel.internal.evil.example",
            "localhost.",
        ] {
            assert_eq!(status("/", Version::HTTP_11, &[host]), Err(421), "{host}");
        }
        for named in [&["a b"][..], &[""], &["localhost", "localhost"], &[]] {
            assert_eq!(status("/", Version::HTTP_11, named), Err(400), "{named:?}");
        }
        assert_eq!(status("/", Version::HTTP_10, &[]), Ok(()));
        let absolute = "http://evil.example/metrics";
        let named = ["localhost"];
        assert_eq!(status(absolute, Version::HTTP_11, &named), Err(421));
    }
}
