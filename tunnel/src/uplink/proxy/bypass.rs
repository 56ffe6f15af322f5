//! Which servers are reached without a proxy.

use tunnel_proto::policy::network::Network;
use tunnel_proto::target::Endpoint;

/// Whether `host` is on this machine, or among the `exceptions`: names, which stand for all names
/// below them too, addresses and networks, between commas or spaces; `*` is every host. A port
/// behind one restricts it to that port.
pub(crate) fn applies(host: &Endpoint, exceptions: &str) -> bool {
    let is_here = host.address().map_or_else(
        || host.host() == "localhost",
        |address| address.to_canonical().is_loopback(),
    );
    is_here
        || exceptions
            .split([',', ' ', '\t'])
            .filter(|entry| !entry.is_empty())
            .any(|entry| {
                let (entry, port) = split_port(entry);
                port.is_none_or(|port| port == host.port())
                    && (entry == "*" || matches(host, entry))
            })
}

/// Splits `HOST:PORT`. An IPv6 address has a port only if it is in brackets.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    let split = entry.rsplit_once(':').and_then(|(host, port)| {
        let has_port = !host.contains(':') || host.starts_with('[') && host.ends_with(']');
        Some((host, port.parse().ok().filter(|_| has_port)?))
    });
    split.map_or((entry, None), |(host, port)| (host, Some(port)))
}

fn matches(host: &Endpoint, entry: &str) -> bool {
    if let Some(address) = host.address() {
        let bare = entry
            .strip_prefix('[')
            .and_then(|entry| entry.strip_suffix(']'));
        let network = bare.unwrap_or(entry).parse::<Network>();
        return network.is_ok_and(|network| network.contains(address));
    }
    let entry = entry.strip_prefix('.').unwrap_or(entry);
    let entry = entry
        .strip_suffix('.')
        .unwrap_or(entry)
        .to_ascii_lowercase();
    host.host()
        .strip_suffix(&entry)
        .is_some_and(|below| below.is_empty() || below.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_names_with_all_below_addresses_and_networks() {
        for (host, exceptions, applied) in [
            ("a.example", "", false),
            ("a.example", "*", true),
            ("a.example", "b.example, *", true),
            ("a.example", "a.example", true),
            ("a.example", "A.Example.", true),
            ("a.example", "example", true),
            ("a.example", ".example", true),
            ("a.example", "b.example example", true),
            ("a.example", "b.example", false),
            ("a.example", "a.exampl", false),
            ("notexample", "example", false),
            ("a.example", ",.", false),
            ("a.example", "10.0.0.0/8", false),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("10.1.2.3", "192.0.2.1,10.1.2.3", true),
            ("10.1.2.3", "11.0.0.0/8", false),
            ("10.1.2.3", "3", false),
            ("[2001:db8::1]", "2001:db8::/32", true),
            ("[2001:db8::1]", "[2001:db8::1]", true),
            ("[2001:db8::1]", "2001:db9::/32", false),
            ("a.example", "a.example:80", true),
            ("a.example", "a.example:443", false),
            ("a.example", "b.example:80,.example:80", true),
            ("a.example", "*:80", true),
            ("a.example", "*:443", false),
            ("a.example", "a.example:", false),
            ("a.example", "a.example:http", false),
            ("10.1.2.3", "10.1.2.3:80", true),
            ("10.1.2.3", "10.0.0.0/8:80", true),
            ("10.1.2.3", "10.1.2.3:81", false),
            ("[2001:db8::1]", "[2001:db8::1]:80", true),
            ("[2001:db8::1]", "[2001:db8::1]:81", false),
            ("[2001:db8::80]", "2001:db8::80", true),
            ("localhost", "", true),
            ("127.1.2.3", "", true),
            ("[::1]", "", true),
            ("[::ffff:127.0.0.1]", "", true),
            ("localhost.example", "", false),
        ] {
            let endpoint = Endpoint::parse(host, Some(80)).unwrap();
            assert_eq!(
                applies(&endpoint, exceptions),
                applied,
                "{host} {exceptions:?}"
            );
        }
    }
}
