//! Who is let in at the HTTP ports.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::io::token::Digest;
use tunnel::login::{User, UserRights, Users};
use tunnel::policy::Policy;
use tunnel::server::auth::access::{Grant, Rights};
use tunnel::server::config::{HttpPort, HttpSocket};
use tunnel::server::{Config, Port, PortsError, Server, StartError};

use crate::rig::{LONG, Rig, loopback, server_config, token, with_http, within};
use crate::world::{TcpListener, connect};

/// What a user named anna sends with the token `anna's`.
const ANNA: &str = "Authorization: Basic YW5uYTphbm5hJ3M=\r\n";
const BEARER: &str = "Authorization: Bearer anna's\r\n";

fn users(rights: UserRights) -> Users {
    let mut users = Users::default();
    let anna = User {
        tokens: vec![Digest::of(b"anna's")],
        password: None,
        rights,
    };
    users.add("anna", anna).unwrap();
    users
}

/// Serves visitors who log in.
fn with_login(config: &mut Config, rights: UserRights) {
    config.access.set_users(users(rights));
    let port = HttpPort {
        login: true,
        ..HttpPort::new(config.listen.into(), HttpSocket::Shared)
    };
    config.ports = vec![port.into()];
}

/// Sends a request with `Connection: close`, serves it at the target if it gets there, and returns
/// the whole response and the head that the target got.
async fn ask(rig: &Rig, at: SocketAddr, path: &str, headers: &str) -> (String, String) {
    let mut visitor = connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    visitor.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    let reading = visitor.read_to_string(&mut response);
    let serving = async {
        let (mut target, _) = rig.target.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(target.read_buf(&mut head).await.unwrap() > 0);
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nprivate";
        target.write_all(answer).await.unwrap();
        String::from_utf8(head).unwrap().to_ascii_lowercase()
    };
    let mut serving = std::pin::pin!(serving);
    let mut head = String::new();
    let exchange = async {
        let mut reading = std::pin::pin!(reading);
        loop {
            tokio::select! {
                read = reading.as_mut() => break read.unwrap(),
                served = serving.as_mut(), if head.is_empty() => head = served,
            }
        }
    };
    within(LONG, "the response", exchange).await;
    (response, head)
}

async fn status(rig: &Rig, at: SocketAddr, path: &str, headers: &str) -> u16 {
    let (response, _) = ask(rig, at, path, headers).await;
    response.split(' ').nth(1).unwrap().parse().unwrap()
}

fn path(rig: &Rig) -> String {
    format!("/client/web/http/{}/", rig.target.local_addr().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_off_unless_it_is_asked_for() {
    let rig = Rig::start().await;
    let (response, head) = ask(&rig, rig.server.front(), &path(&rig), "Host: localhost\r\n").await;
    assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
    assert!(response.contains("http = [\"listen\"]") && head.is_empty());
    // It can be switched on and off while the server runs.
    let port = HttpPort::new(loopback().into(), HttpSocket::Shared);
    for (ports, expected) in [(vec![Port::from(port)], 200), (vec![], 404)] {
        rig.server.set_ports(ports).await.unwrap();
        let front = rig.server.front();
        let asked = status(&rig, front, &path(&rig), "Host: localhost\r\n").await;
        assert_eq!(asked, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_a_port_of_its_own_where_agents_are_not_served() {
    let rig = Rig::start_with(
        |config| {
            let port = HttpPort::new(loopback().into(), HttpSocket::Plain);
            config.ports = vec![port.into()];
        },
        |_| {},
    )
    .await;
    let own = rig.server.ports()[1].1.inet().unwrap();
    assert_ne!(own, rig.server.front());
    let (response, head) = ask(&rig, own, &path(&rig), "Host: localhost\r\n").await;
    assert!(response.ends_with("private"), "{response}");
    assert!(head.starts_with("get / http/1.1\r\n"), "{head}");
    let front = rig.server.front();
    assert_eq!(
        status(&rig, front, &path(&rig), "Host: localhost\r\n").await,
        404
    );
    assert_eq!(
        status(&rig, own, "/connect", "Host: localhost\r\n").await,
        404
    );
    rig.at_rest().await;
}

/// A visitor that is no trusted proxy cannot say who it is.
#[tokio::test(flavor = "multi_thread")]
async fn the_target_learns_who_the_visitor_is() {
    for (proxies, told) in [
        (&[][..], "127.0.0.1"),
        (&["127.0.0.0/8"][..], "203.0.113.9, 127.0.0.1"),
    ] {
        let rig = Rig::start_with(
            |config| {
                let mut port = HttpPort::new(loopback().into(), HttpSocket::Plain);
                let proxies = proxies.iter().map(|proxy| proxy.parse().unwrap());
                port.trusted_proxies = proxies.collect();
                config.ports = vec![port.into()];
            },
            |_| {},
        )
        .await;
        let own = rig.server.ports()[1].1.inet().unwrap();
        let claims = "Host: localhost\r\nX-Forwarded-For: 203.0.113.9\r\n";
        let (_, head) = ask(&rig, own, &path(&rig), claims).await;
        for line in [
            format!("x-forwarded-for: {told}"),
            "x-forwarded-proto: http".to_owned(),
            "x-forwarded-host: localhost".to_owned(),
            "forwarded: for=127.0.0.1;host=\"localhost\";proto=http".to_owned(),
        ] {
            assert!(head.lines().any(|it| it == line), "{line}: {head}");
        }
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_other_machines_reach_it_it_needs_a_login() {
    for socket in [HttpSocket::Shared, HttpSocket::Plain] {
        let mut config = Config::new(loopback(), token());
        config.listen = "0.0.0.0:0".parse().unwrap();
        let port = HttpPort::new(config.listen.into(), socket);
        config.ports = vec![port.clone().into()];
        let error = Server::start(config.clone()).await.unwrap_err();
        assert!(
            matches!(
                error,
                StartError::Ports(PortsError::Open { kind: "http", .. })
            ),
            "{error}"
        );
        let guarded = HttpPort {
            login: true,
            ..port.clone()
        };
        config.ports = vec![guarded.into()];
        let server = Server::start(config).await.unwrap();
        let opened = server.set_ports(vec![port.into()]).await;
        assert!(matches!(opened, Err(PortsError::Open { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_users_are_served_and_their_secrets_stay_here() {
    let rig = Rig::start_with(|config| with_login(config, UserRights::default()), |_| {}).await;
    let front = rig.server.front();
    for headers in [
        "",
        // anna:other
        "Authorization: Basic YW5uYTpvdGhlcg==\r\n",
        "Authorization: Bearer other\r\n",
        "Authorization: Bearer secret\r\n",
        "Authorization: Negotiate YW5uYQ==\r\n",
        "Proxy-Authorization: Bearer other\r\nAuthorization: Bearer anna's\r\n",
        &format!("{ANNA}{ANNA}"),
    ] {
        let headers = format!("Host: localhost\r\n{headers}");
        for path in [path(&rig), "/".to_owned()] {
            let (response, head) = ask(&rig, front, &path, &headers).await;
            assert!(response.starts_with("HTTP/1.1 401 "), "{headers}{response}");
            let response = response.to_ascii_lowercase();
            assert!(
                response.contains("www-authenticate: basic realm="),
                "{response}"
            );
            assert!(head.is_empty());
        }
    }
    for headers in [ANNA, BEARER] {
        let headers = format!("Host: localhost\r\n{headers}");
        let (response, head) = ask(&rig, front, &path(&rig), &headers).await;
        assert!(response.ends_with("private"), "{response}");
        assert!(!head.contains("authorization"), "{head}");
    }
    // What logs in at the target gets there.
    let headers = format!("Host: localhost\r\nProxy-{BEARER}Authorization: Basic eDp5\r\n");
    let (response, head) = ask(&rig, front, &path(&rig), &headers).await;
    assert!(response.ends_with("private"), "{response}");
    assert!(head.contains("\r\nauthorization: basic edp5\r\n"), "{head}");
    assert!(!head.contains("anna"), "{head}");
    // A user who is removed is not served, from the next request on.
    let mut access = tunnel::server::auth::access::Access::from(token());
    access.set_users(Users::of_pair("bert:b").unwrap());
    rig.server.set_access(access).unwrap();
    let headers = format!("Host: localhost\r\n{ANNA}");
    assert_eq!(status(&rig, front, &path(&rig), &headers).await, 401);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_those_of_the_user_and_those_of_the_agent() {
    let agents = |name: &str| Some(BTreeSet::from([name.to_owned()]));
    let targets = |rule: &str| Some(Policy::new(vec![rule.parse().unwrap()]));
    for (agents, targets, expected) in [
        (agents("web"), targets("127.0.0.1:*"), 200),
        (agents("other"), targets("127.0.0.1:*"), 403),
        (agents("web"), targets("127.0.0.2:*"), 403),
    ] {
        let rights = UserRights { agents, targets };
        let rig = Rig::start_with(|config| with_login(config, rights), |_| {}).await;
        let headers = format!("Host: localhost\r\n{ANNA}");
        let asked = status(&rig, rig.server.front(), &path(&rig), &headers).await;
        assert_eq!(asked, expected);
    }
}

/// The agent's ports are those that lead to it, whatever they speak.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_reached_by_its_ports_only() {
    for (ports, expected) in [("127.0.0.1:8088", 403), ("127.0.0.1:0", 200)] {
        let grant = Grant {
            tokens: vec![token().digest()],
            rights: Rights {
                targets: None,
                ports: Some(vec![ports.parse().unwrap()]),
                peers: None,
            },
            ..Grant::default()
        };
        let rig = Rig::start_with(
            |config| {
                with_http(config);
                config.forwards.clear();
                config.access.grant("web".to_owned(), grant);
            },
            |_| {},
        )
        .await;
        let front = rig.server.front();
        let asked = status(&rig, front, &path(&rig), "Host: localhost\r\n").await;
        assert_eq!(asked, expected, "{ports}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_and_foreign_host_names_are_refused() {
    let rig = Rig::start_with(
        |config| {
            let port = HttpPort {
                hosts: vec!["tunnel.example".to_owned()],
                origins: vec!["https://app.example".parse().unwrap()],
                ..HttpPort::new(config.listen.into(), HttpSocket::Shared)
            };
            config.ports = vec![port.into()];
        },
        |_| {},
    )
    .await;
    let front = rig.server.front();
    for (headers, expected) in [
        ("Host: evil.example\r\n", 421),
        ("Host: localhost\r\nHost: localhost\r\n", 400),
        ("", 400),
        ("Host: tunnel.example:8123\r\n", 200),
        ("Host: localhost\r\nOrigin: http://evil.example\r\n", 403),
        ("Host: localhost\r\nOrigin: null\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: same-site\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: same-origin\r\n", 200),
        ("Host: localhost\r\nOrigin: http://localhost\r\n", 200),
        (
            "Host: localhost\r\nOrigin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n",
            200,
        ),
    ] {
        let asked = status(&rig, front, &path(&rig), headers).await;
        assert_eq!(asked, expected, "{headers}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_listens_on_a_unix_socket_and_asks_for_no_host_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("http.sock");
    let target = TcpListener::bind(loopback()).await.unwrap();
    let mut config = server_config(target.local_addr().unwrap());
    let listen = format!("unix:{}", file.display()).parse().unwrap();
    config.ports = vec![HttpPort::new(listen, HttpSocket::Plain).into()];
    let _server = Server::start(config).await.unwrap();
    let visitor = tokio::net::UnixStream::connect(&file).await.unwrap();
    let mut visitor = crate::world::of_the_world(visitor);
    let request = b"GET /client/absent/http/a/ HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n";
    visitor.write_all(request).await.unwrap();
    let mut response = String::new();
    let read = visitor.read_to_string(&mut response);
    within(LONG, "the response", read).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_path_is_for_everybody_and_shows_nothing_else() {
    let rig = Rig::start_with(
        |config| {
            with_login(config, UserRights::default());
            let own = HttpPort {
                login: true,
                ..HttpPort::new(loopback().into(), HttpSocket::Plain)
            };
            config.ports.push(own.into());
            config.health_path = Some("/healthz".parse().unwrap());
        },
        |_| {},
    )
    .await;
    let own = rig.server.ports()[2].1.inet().unwrap();
    for at in [rig.server.front(), own] {
        for headers in [
            "Host: balancer.example\r\n",
            "Host: a\r\nSec-Fetch-Site: cross-site\r\n",
        ] {
            let (response, _) = ask(&rig, at, "/healthz?a=b", headers).await;
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            let head = head.to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200 "), "{head}");
            assert_eq!(body, "ok\n");
            for line in head.lines().skip(1) {
                let (name, _) = line.split_once(':').unwrap();
                let known = [
                    "cache-control",
                    "connection",
                    "content-length",
                    "content-type",
                    "date",
                ];
                assert!(known.contains(&name), "{line}");
            }
        }
        // Nothing below it, and nothing else without a login.
        for path in ["/healthz/", "/healthz/../client/web", "/"] {
            assert_eq!(status(&rig, at, path, "Host: localhost\r\n").await, 401);
        }
        let mut visitor = connect(at).await.unwrap();
        visitor
            .write_all(b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        let mut response = String::new();
        let read = visitor.read_to_string(&mut response);
        within(LONG, "the response", read).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 405 "), "{response}");
    }
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_is_not_healthy() {
    let rig = Rig::start_with(
        |config| config.health_path = Some("/".parse().unwrap()),
        |_| {},
    )
    .await;
    // It has come before, and keeps the stream of somebody else company.
    let (_visitor, _target) = rig.pair().await;
    let mut check = connect(rig.server.front()).await.unwrap();
    check.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    crate::rig::until("the check", || rig.server.tasks() >= 3).await;
    let draining = tokio::spawn(rig.server.drain(LONG));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    check.write_all(b"Host: a\r\n\r\n").await.unwrap();
    let mut response = String::new();
    let read = check.read_to_string(&mut response);
    within(LONG, "the response", read).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    draining.abort();
}
