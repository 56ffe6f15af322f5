//! Who a visitor is, as proxies tell it: `X-Forwarded-*`, and `Forwarded` (RFC 7239).

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use tunnel_proto::policy::network::Network;

use crate::io::socket::PeerAddr;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// A proxy in front of an HTTP port, whose word about its visitors is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustedProxy {
    /// One of these addresses.
    Network(Network),
    /// A process of this machine, by a Unix socket.
    Unix,
}

/// A text does not say which proxies are trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a proxy to trust: write ADDRESS, ADDRESS/PREFIX, or unix for Unix sockets")]
pub struct TrustedProxyError(String);

impl FromStr for TrustedProxy {
    type Err = TrustedProxyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let network = text.parse().map(Self::Network);
        network.map_err(|_| TrustedProxyError(text.to_owned()))
    }
}

fn is_trusted(from: PeerAddr, trusted: &[TrustedProxy]) -> bool {
    trusted.iter().any(|proxy| match (proxy, from) {
        (TrustedProxy::Network(network), PeerAddr::Inet(address)) => network.contains(address.ip()),
        (TrustedProxy::Unix, PeerAddr::Unix) => true,
        (TrustedProxy::Network(_), PeerAddr::Unix) | (TrustedProxy::Unix, PeerAddr::Inet(_)) => {
            false
        }
    })
}

/// Returns the visitor behind trusted proxies: the last address of `X-Forwarded-For` that is no
/// proxy's, as far as each says what it knows. Its port is 0, since it is not told.
pub(crate) fn visitor(headers: &HeaderMap, from: PeerAddr, trusted: &[TrustedProxy]) -> PeerAddr {
    let mut visitor = from;
    let told = headers.get_all(FOR).iter().rev();
    let mut told = told.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    while is_trusted(visitor, trusted) {
        let Some(address) = told.next().and_then(address) else {
            break;
        };
        visitor = PeerAddr::Inet(SocketAddr::new(address, 0));
    }
    visitor
}

/// Reads an address, with or without a port, as some proxies write it.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    bare.parse().ok().or_else(with_port)
}

/// Tells the target who the visitor is. What a visitor says that is no trusted proxy is removed.
pub(crate) fn tell(
    headers: &mut HeaderMap,
    from: PeerAddr,
    scheme: &'static str,
    trusted: &[TrustedProxy],
) {
    if !is_trusted(from, trusted) {
        let is_claim = |name: &&HeaderName| {
            name.as_str().starts_with("x-forwarded-") || [REAL_IP, header::FORWARDED].contains(name)
        };
        let claims: Vec<HeaderName> = headers.keys().filter(is_claim).cloned().collect();
        for claim in claims {
            headers.remove(claim);
        }
    }
    let host = headers.get(header::HOST).cloned();
    if let PeerAddr::Inet(address) = from {
        append(headers, &FOR, &address.ip().to_canonical().to_string());
    }
    append(
        headers,
        &header::FORWARDED,
        &element(from, scheme, host.as_ref()),
    );
    let entry = headers.entry(PROTO);
    entry.or_insert(HeaderValue::from_static(scheme));
    if let Some(host) = host {
        headers.entry(HOST).or_insert(host);
    }
}

/// Appends to a list. Further lines of it are joined: many targets read one line only.
fn append(headers: &mut HeaderMap, name: &HeaderName, value: &str) {
    let mut list = Vec::new();
    for line in headers.get_all(name) {
        list.extend_from_slice(line.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(value.as_bytes());
    if let Ok(list) = HeaderValue::from_bytes(&list) {
        headers.insert(name, list);
    }
}

/// Returns the visitor as an element of `Forwarded` (RFC 7239, section 4).
fn element(from: PeerAddr, scheme: &str, host: Option<&HeaderValue>) -> String {
    let node = match from {
        PeerAddr::Inet(address) => match address.ip().to_canonical() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        },
        PeerAddr::Unix => "unknown".to_owned(),
    };
    let host = host.and_then(|host| host.to_str().ok());
    // Nothing in the host of a request needs to be escaped in a quoted string.
    let host = host.filter(|host| !host.contains(['"', '\\']));
    match host {
        Some(host) => format!("for={node};host=\"{host}\";proto={scheme}"),
        None => format!("for={node};proto={scheme}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(address: &str) -> PeerAddr {
        PeerAddr::Inet(SocketAddr::new(address.parse().unwrap(), 4711))
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn trusted(list: &[&str]) -> Vec<TrustedProxy> {
        list.iter().map(|it| it.parse().unwrap()).collect()
    }

    fn lines<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
        let all = headers.get_all(name).iter();
        all.map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn what_a_stranger_says_is_replaced() {
        let mut told = headers(&[
            ("host", "app.example:8123"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "admin.example"),
            ("x-forwarded-port", "443"),
            ("x-real-ip", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1"),
            ("accept", "*/*"),
        ]);
        tell(&mut told, inet("::ffff:203.0.113.9"), "http", &[]);
        assert_eq!(lines(&told, "x-forwarded-for"), ["203.0.113.9"]);
        assert_eq!(lines(&told, "x-forwarded-proto"), ["http"]);
        assert_eq!(lines(&told, "x-forwarded-host"), ["app.example:8123"]);
        let wanted = "for=203.0.113.9;host=\"app.example:8123\";proto=http";
        assert_eq!(lines(&told, "forwarded"), [wanted]);
        assert_eq!(told.len(), 6, "{told:?}");
    }

    #[test]
    fn what_a_trusted_proxy_says_is_added_to() {
        let mut told = headers(&[
            ("host", "inner"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "app.example"),
            ("x-forwarded-port", "443"),
            ("forwarded", "for=203.0.113.9"),
        ]);
        tell(&mut told, inet("fd00::3"), "http", &trusted(&["fd00::/8"]));
        let all = "203.0.113.9, 10.0.0.2, fd00::3";
        assert_eq!(lines(&told, "x-forwarded-for"), [all]);
        assert_eq!(lines(&told, "x-forwarded-proto"), ["https"]);
        assert_eq!(lines(&told, "x-forwarded-host"), ["app.example"]);
        assert_eq!(lines(&told, "x-forwarded-port"), ["443"]);
        let all = "for=203.0.113.9, for=\"[fd00::3]\";host=\"inner\";proto=http";
        assert_eq!(lines(&told, "forwarded"), [all]);
    }

    #[test]
    fn a_unix_socket_has_no_address() {
        let mut told = headers(&[("x-forwarded-for", "203.0.113.9")]);
        tell(&mut told, PeerAddr::Unix, "http", &trusted(&["unix"]));
        assert_eq!(lines(&told, "x-forwarded-for"), ["203.0.113.9"]);
        assert_eq!(lines(&told, "forwarded"), ["for=unknown;proto=http"]);
        tell(&mut told, PeerAddr::Unix, "http", &trusted(&["127.0.0.1"]));
        assert!(lines(&told, "x-forwarded-for").is_empty());
    }

    #[test]
    fn the_visitor_is_the_last_address_that_is_no_proxys() {
        let proxies = trusted(&["10.0.0.0/8", "127.0.0.1"]);
        let ip = |visitor: PeerAddr| match visitor {
            PeerAddr::Inet(address) => address.ip().to_string(),
            PeerAddr::Unix => "unix".to_owned(),
        };
        for (told, from, visitor_is) in [
            ("203.0.113.9", "10.0.0.1", "203.0.113.9"),
            ("1.1.1.1, 203.0.113.9, 10.0.0.2", "127.0.0.1", "203.0.113.9"),
            ("203.0.113.9:80", "10.0.0.1", "203.0.113.9"),
            ("[2001:db8::1]:80", "10.0.0.1", "2001:db8::1"),
            ("[2001:db8::1]", "10.0.0.1", "2001:db8::1"),
            // All are proxies, or the rest cannot be read.
            ("10.0.0.3,10.0.0.2", "10.0.0.1", "10.0.0.3"),
            ("203.0.113.9, nonsense", "10.0.0.1", "10.0.0.1"),
            ("", "10.0.0.1", "10.0.0.1"),
            // No proxy's word.
            ("203.0.113.9", "198.51.100.1", "198.51.100.1"),
        ] {
            let headers = headers(&[("x-forwarded-for", told)]);
            assert_eq!(
                ip(visitor(&headers, inet(from), &proxies)),
                visitor_is,
                "{told}"
            );
        }
    }

    #[test]
    fn proxies_are_networks_or_unix_sockets() {
        assert_eq!("unix".parse(), Ok(TrustedProxy::Unix));
        let network = TrustedProxy::Network("10.0.0.0/8".parse().unwrap());
        assert_eq!("10.0.0.0/8".parse(), Ok(network));
        for wrong in ["", "proxy.example", "10.0.0.0/33", "*"] {
            assert!(wrong.parse::<TrustedProxy>().is_err(), "{wrong}");
        }
    }
}
