use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::policy::{Coverage, Policy, Protocol, Rule};
use crate::target::Target;

fn policy(rules: &[&str]) -> Policy {
    Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

fn allows(rules: &[&str], target: &str, address: &str) -> bool {
    let address = address.parse().unwrap();
    match target.parse().unwrap() {
        Target::Tcp(endpoint) => policy(rules).allows(Protocol::Tcp, &endpoint, address),
        Target::Udp(endpoint) => policy(rules).allows(Protocol::Udp, &endpoint, address),
        Target::Unix(_) => panic!("{target} has no address"),
    }
}

#[test]
fn nothing_is_allowed_by_default() {
    for (target, address) in [
        ("tcp/127.0.0.1:80", "127.0.0.1:80"),
        ("tcp/localhost:80", "[::1]:80"),
        ("tcp/example.com:443", "192.0.2.1:443"),
    ] {
        assert!(!allows(&[], target, address), "{target}");
    }
    assert!(!policy(&[]).allows_unix(Path::new("/run/app.sock"), |path| Some(path.to_owned())));
}

#[test]
fn addresses_networks_names_and_ports() {
    for (rule, target, address, allowed) in [
        ("127.0.0.1:80", "tcp/127.0.0.1:80", "127.0.0.1:80", true),
        ("127.0.0.1:80", "tcp/127.0.0.1:81", "127.0.0.1:81", false),
        ("127.0.0.1:*", "tcp/127.0.0.1:81", "127.0.0.1:81", true),
        ("127.0.0.1:80-82", "tcp/127.0.0.1:80", "127.0.0.1:80", true),
        ("127.0.0.1:80-82", "tcp/127.0.0.1:82", "127.0.0.1:82", true),
        ("127.0.0.1:80-82", "tcp/127.0.0.1:79", "127.0.0.1:79", false),
        ("127.0.0.1:80-82", "tcp/127.0.0.1:83", "127.0.0.1:83", false),
        ("127.0.0.1:80", "tcp/localhost:80", "127.0.0.1:80", true),
        (
            "127.0.0.1:80",
            "tcp/[::ffff:127.0.0.1]:80",
            "[::ffff:127.0.0.1]:80",
            true,
        ),
        (
            "[::ffff:127.0.0.1]:80",
            "tcp/127.0.0.1:80",
            "127.0.0.1:80",
            true,
        ),
        ("10.0.0.0/8:443", "tcp/a:443", "10.255.0.1:443", true),
        ("10.0.0.0/8:443", "udp/a:443", "10.255.0.1:443", false),
        ("udp:10.0.0.0/8:53", "udp/a:53", "10.255.0.1:53", true),
        ("udp:10.0.0.0/8:53", "tcp/a:53", "10.255.0.1:53", false),
        ("udp:[2001:db8::1]:*", "udp/a:53", "[2001:db8::1]:53", true),
        ("10.0.0.0/8:443", "tcp/a:443", "11.0.0.1:443", false),
        ("0.0.0.0/0:*", "tcp/a:443", "11.0.0.1:443", true),
        ("0.0.0.0/0:*", "tcp/a:443", "[2001:db8::1]:443", false),
        ("[2001:db8::1]:80", "tcp/a:80", "[2001:db8::1]:80", true),
        ("[fd00::/8]:*", "tcp/a:80", "[fd12::1]:80", true),
        ("[fd00::/8]:*", "tcp/a:80", "[fc00::1]:80", false),
        (
            "db.internal:5432",
            "tcp/DB.internal:5432",
            "192.0.2.1:5432",
            true,
        ),
        (
            "db.internal.:5432",
            "tcp/db.internal:5432",
            "192.0.2.1:5432",
            true,
        ),
        (
            "db.internal:5432",
            "tcp/db.internal.:5432",
            "192.0.2.1:5432",
            true,
        ),
        (
            "db.internal:5432",
            "tcp/192.0.2.1:5432",
            "192.0.2.1:5432",
            false,
        ),
        (
            "db.internal:5432",
            "tcp/a.db.internal:5432",
            "192.0.2.1:5432",
            false,
        ),
        (
            "*.internal:5432",
            "tcp/a.db.internal:5432",
            "192.0.2.1:5432",
            true,
        ),
        (
            "*.internal:5432",
            "tcp/internal:5432",
            "192.0.2.1:5432",
            false,
        ),
        (
            "*.internal:5432",
            "tcp/notinternal:5432",
            "192.0.2.1:5432",
            false,
        ),
        (
            "*.internal:5432",
            "tcp/a.internal.evil:5432",
            "192.0.2.1:5432",
            false,
        ),
        (
            "*.internal:5432",
            "tcp/192.0.2.1:5432",
            "192.0.2.1:5432",
            false,
        ),
    ] {
        assert_eq!(
            allows(&[rule], target, address),
            allowed,
            "{rule} {target} {address}"
        );
    }
}

#[test]
fn what_no_rule_can_allow_is_known_before_its_name_is_looked_up() {
    let rules = policy(&[
        "10.0.0.0/8:5432",
        "udp:[fd00::/8]:53",
        "db.internal:5433",
        "*.internal:80",
        "unix:/run/*",
    ]);
    for (target, coverage) in [
        ("tcp/secret.evil.example:5432", Coverage::Address),
        ("tcp/secret.evil.example:5433", Coverage::None),
        ("tcp/secret.evil.example:80", Coverage::None),
        ("tcp/secret.evil.example:53", Coverage::None),
        ("udp/secret.evil.example:53", Coverage::Address),
        ("udp/secret.evil.example:5432", Coverage::None),
        ("tcp/db.internal:5432", Coverage::Address),
        ("tcp/db.internal:5433", Coverage::Host),
        ("tcp/a.internal:80", Coverage::Host),
        ("tcp/a.internal:443", Coverage::None),
        ("tcp/internal:80", Coverage::None),
        ("tcp/10.1.2.3:5432", Coverage::Host),
        ("tcp/[::ffff:10.1.2.3]:5432", Coverage::Host),
        ("tcp/11.1.2.3:5432", Coverage::None),
        ("tcp/10.1.2.3:80", Coverage::None),
    ] {
        let found = match target.parse().unwrap() {
            Target::Tcp(endpoint) => rules.coverage(Protocol::Tcp, &endpoint),
            Target::Udp(endpoint) => rules.coverage(Protocol::Udp, &endpoint),
            Target::Unix(_) => panic!("{target} has no name"),
        };
        assert_eq!(found, coverage, "{target}");
    }
}

/// What a stranger who may name targets tries, under rules that look wide enough for it. No row may
/// be allowed.
#[test]
fn the_corpus_of_forged_requests() {
    let wide = [
        "0.0.0.0/0:*",
        "[::/0]:*",
        "*.example:*",
        "rebound.example:*",
    ];
    for (what, target, address) in [
        ("itself, unspecified", "0.0.0.0", "0.0.0.0"),
        ("itself, unspecified", "0.1.2.3", "0.1.2.3"),
        ("itself, unspecified", "[::]", "::"),
        ("itself, mapped", "[::ffff:0.0.0.0]", "::ffff:0.0.0.0"),
        ("loopback", "127.0.0.1", "127.0.0.1"),
        (
            "loopback, its far end",
            "127.255.255.254",
            "127.255.255.254",
        ),
        ("loopback", "[::1]", "::1"),
        ("loopback, mapped", "[::ffff:127.0.0.1]", "::ffff:127.0.0.1"),
        ("loopback, mapped", "[::ffff:7f00:1]", "::ffff:7f00:1"),
        ("loopback, compatible", "[::127.0.0.1]", "::127.0.0.1"),
        ("loopback, NAT64", "[64:ff9b::7f00:1]", "64:ff9b::7f00:1"),
        ("loopback, 6to4", "[2002:7f00:1::]", "2002:7f00:1::"),
        ("loopback by a name", "localhost", "127.0.0.1"),
        ("metadata", "169.254.169.254", "169.254.169.254"),
        ("metadata", "[::ffff:a9fe:a9fe]", "::ffff:169.254.169.254"),
        (
            "metadata, NAT64",
            "[64:ff9b::a9fe:a9fe]",
            "64:ff9b::a9fe:a9fe",
        ),
        ("metadata, 6to4", "[2002:a9fe:a9fe::1]", "2002:a9fe:a9fe::1"),
        ("metadata, Amazon", "[fd00:ec2::254]", "fd00:ec2::254"),
        ("metadata, Alibaba", "100.100.100.200", "100.100.100.200"),
        ("metadata, Azure", "168.63.129.16", "168.63.129.16"),
        ("metadata, Amazon EKS", "[fd00:ec2::23]", "fd00:ec2::23"),
        ("metadata, Google", "[fd20:ce::254]", "fd20:ce::254"),
        (
            "metadata, Oracle",
            "[fd00:c1::a9fe:a9fe]",
            "fd00:c1::a9fe:a9fe",
        ),
        ("metadata, Oracle", "192.0.0.192", "192.0.0.192"),
        ("metadata, Scaleway", "[fd00:42::42]", "fd00:42::42"),
        ("rebound to metadata", "a.example", "fd20:ce::254"),
        (
            "metadata, translated",
            "[::ffff:0:a9fe:a9fe]",
            "::ffff:0:a9fe:a9fe",
        ),
        (
            "loopback, translated",
            "[::ffff:0:7f00:1]",
            "::ffff:0:127.0.0.1",
        ),
        (
            "metadata, local NAT64",
            "[64:ff9b:1::a9fe:a9fe]",
            "64:ff9b:1::a9fe:a9fe",
        ),
        (
            "metadata, local NAT64 below /48",
            "[64:ff9b:1:a9fe:a9:fe00::]",
            "64:ff9b:1:a9fe:a9:fe00::",
        ),
        (
            "metadata, local NAT64 below /56",
            "[64:ff9b:1:12a9:fe:a9fe::]",
            "64:ff9b:1:12a9:fe:a9fe::",
        ),
        (
            "metadata, local NAT64 below /64",
            "[64:ff9b:1:fffe:a9:fea9:fe00:0]",
            "64:ff9b:1:fffe:a9:fea9:fe00:0",
        ),
        (
            "metadata, local NAT64 below /96",
            "[64:ff9b:1:fffe:1:2:a9fe:a9fe]",
            "64:ff9b:1:fffe:1:2:a9fe:a9fe",
        ),
        ("unspecified, local NAT64", "[64:ff9b:1::]", "64:ff9b:1::"),
        (
            "multicast, local NAT64",
            "[64:ff9b:1::e000:1]",
            "64:ff9b:1::e000:1",
        ),
        (
            "Alibaba's, local NAT64",
            "[64:ff9b:1::6464:64c8]",
            "64:ff9b:1::6464:64c8",
        ),
        (
            "metadata, a Teredo client",
            "[2001:0:c000:201::5601:5601]",
            "2001:0:c000:201::5601:5601",
        ),
        (
            "loopback, a Teredo client",
            "[2001:0:c000:201::80ff:fffe]",
            "2001:0:c000:201::80ff:fffe",
        ),
        (
            "metadata, a Teredo server",
            "[2001:0:a9fe:a9fe::3fff:fdfe]",
            "2001:0:a9fe:a9fe::3fff:fdfe",
        ),
        (
            "metadata, ISATAP",
            "[2001:db8::5efe:a9fe:a9fe]",
            "2001:db8::5efe:a9fe:a9fe",
        ),
        (
            "metadata, 6to4, Azure",
            "[2002:a83f:8110::1]",
            "2002:a83f:8110::1",
        ),
        ("link-local", "169.254.0.1", "169.254.0.1"),
        ("link-local", "[fe80::1]", "fe80::1"),
        ("multicast", "224.0.0.1", "224.0.0.1"),
        ("multicast", "[ff02::1]", "ff02::1"),
        ("broadcast", "255.255.255.255", "255.255.255.255"),
        ("reserved", "240.0.0.1", "240.0.0.1"),
        ("rebound to loopback", "rebound.example", "127.0.0.1"),
        ("rebound to loopback", "rebound.example", "::1"),
        ("rebound to itself", "rebound.example", "0.0.0.0"),
        ("rebound, mapped", "rebound.example", "::ffff:127.0.0.1"),
        ("rebound to metadata", "rebound.example", "169.254.169.254"),
        ("rebound to metadata", "a.example", "fd00:ec2::254"),
        ("rebound to a neighbour", "a.example", "fe80::1"),
        ("a name that looks local", "localhost.example", "127.0.0.1"),
        ("a name of an address", "127.0.0.1.example", "127.0.0.1"),
    ] {
        let target = format!("tcp/{target}:80");
        let address = SocketAddr::new(address.parse().unwrap(), 80).to_string();
        assert!(
            !allows(&wide, &target, &address),
            "{what}: {target} at {address}"
        );
    }
}

#[test]
fn a_rule_that_is_about_a_guarded_range_reaches_it() {
    for (rule, target, address, allowed) in [
        ("127.0.0.0/8:80", "tcp/127.1.2.3:80", "127.1.2.3:80", true),
        ("127.0.0.1:80", "tcp/web.example:80", "127.0.0.1:80", true),
        ("126.0.0.0/7:80", "tcp/127.0.0.1:80", "127.0.0.1:80", false),
        ("[::1]:80", "tcp/localhost:80", "[::1]:80", true),
        ("localhost:80", "tcp/localhost:80", "127.0.0.1:80", true),
        ("localhost:80", "tcp/localhost:80", "[::1]:80", true),
        ("localhost:80", "tcp/localhost:80", "169.254.0.1:80", false),
        ("localhost:80", "tcp/127.0.0.1:80", "127.0.0.1:80", false),
        (
            "web.example:80",
            "tcp/web.example:80",
            "127.0.0.1:80",
            false,
        ),
        (
            "169.254.169.254:80",
            "tcp/169.254.169.254:80",
            "169.254.169.254:80",
            true,
        ),
        ("[fe80::/10]:*", "tcp/[fe80::1]:80", "[fe80::1]:80", true),
        (
            "[fd20:ce::254]:80",
            "tcp/[fd20:ce::254]:80",
            "[fd20:ce::254]:80",
            true,
        ),
        (
            "[fd20:ce::/64]:80",
            "tcp/[fd20:ce::254]:80",
            "[fd20:ce::254]:80",
            false,
        ),
        ("192.0.0.192:80", "tcp/a:80", "192.0.0.192:80", true),
        ("0.0.0.0:80", "tcp/0.0.0.0:80", "0.0.0.0:80", false),
        (
            "[::127.0.0.1]:80",
            "tcp/[::127.0.0.1]:80",
            "[::127.0.0.1]:80",
            false,
        ),
    ] {
        assert_eq!(
            allows(&[rule], target, address),
            allowed,
            "{rule} {target} {address}"
        );
    }
}

#[test]
fn other_addresses_that_carry_one_are_like_any_other() {
    for address in [
        "64:ff9b::192.0.2.1",
        "64:ff9b:1::10.0.0.1",
        "64:ff9b:1:fffe::192.0.2.1",
        "64:ff9b:1:a00:0:100::",
        "::ffff:0:192.0.2.1",
        "2001:0:c000:201::3fff:fdfe",
        "2002:c000:201::1",
        "2001:db8::5efe:192.0.2.1",
        "2001:db8::169.254.169.254",
        "192.0.0.193",
    ] {
        let address = SocketAddr::new(address.parse().unwrap(), 80).to_string();
        let wide = ["[::/0]:*", "0.0.0.0/0:*"];
        assert!(allows(&wide, "tcp/a:80", &address), "{address}");
    }
}

#[test]
fn a_socket_is_allowed_by_where_its_file_is() {
    let links = |path: &Path| match path.to_str().unwrap() {
        "/var/run" => Some(PathBuf::from("/run")),
        "/gone" => None,
        _ => Some(path.to_owned()),
    };
    for (rule, file, allowed) in [
        ("unix:/run/app.sock", "/run/app.sock", true),
        ("unix:/run/app.sock", "/run/docker.sock", false),
        ("unix:/run/app.sock", "/run/app.sock (deleted)", false),
        ("unix:/var/run/app.sock", "/run/app.sock", true),
        // The kernel gives no such path.
        ("unix:/var/run/app.sock", "/var/run/app.sock", false),
        ("unix:/gone/app.sock", "/gone/app.sock", false),
        ("unix:/run/apps/*", "/run/apps/a.sock", true),
        ("unix:/run/apps/*", "/run/apps/b/a.sock", false),
        ("unix:/run/apps/*", "/run/apps", false),
        ("unix:/run/apps/*", "/run/docker.sock", false),
        ("unix:/a.sock", "/a.sock", true),
        ("unix:/*", "/", false),
        ("0.0.0.0/0:*", "/run/app.sock", false),
    ] {
        assert_eq!(
            policy(&[rule]).allows_unix(Path::new(file), links),
            allowed,
            "{rule} {file}"
        );
    }
    assert!(!allows(&["unix:/*"], "tcp/192.0.2.1:80", "192.0.2.1:80"));
}

#[test]
fn what_is_not_a_rule_is_refused() {
    for text in [
        "",
        "a",
        "a:",
        "a:0",
        "a:70000",
        "a:+80",
        "a:80-",
        "a:-80",
        "a:82-80",
        "a:0-80",
        "a:80-*",
        ":80",
        "*:80",
        "*.:80",
        "a*.b:80",
        "*.10.0.0.1:80",
        "10.0.0.0/33:80",
        "10.0.0:80",
        "::1:80",
        "[::1:80",
        "[10.0.0.1]:80",
        "a b:80",
        "x/8:80",
        "udp:",
        "udp:53",
        "udp:udp:a:53",
        "unix:",
        "unix:app.sock",
        "unix:/run/../app.sock",
        "unix:/run//app.sock",
        "unix:/run/",
    ] {
        assert!(text.parse::<Rule>().is_err(), "{text}");
    }
}
