//! HTTP CONNECT ports, spoken to byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tunnel::io::token::Token;
use tunnel::login::Users;
use tunnel::policy::Policy;
use tunnel::server::auth::access::{Grant, Rights};
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::server::{Config, Port};
use tunnel::wire::Dialect;

use crate::rig::{LONG, PROMPT, Rig, drain, loopback, pattern, reset, round_trip, until, within};
use crate::world::{BlackHole, connect, of_the_world};

async fn rig(dialect: Dialect, change: impl FnOnce(&mut Config)) -> Rig {
    rig_that_dials(LONG, dialect, change).await
}

async fn rig_that_dials(
    dial_timeout: Duration,
    dialect: Dialect,
    change: impl FnOnce(&mut Config),
) -> Rig {
    Rig::start_with(
        |server| {
            server.ports = vec![Port::Connect("127.0.0.1:0=web".parse().unwrap())];
            server.remotedialer = Some(Remotedialer::default());
            change(server);
        },
        |agent| {
            agent.dialect = dialect;
            agent.dial_timeout = dial_timeout;
            let rules = ["127.0.0.1:*", "nowhere.invalid:80"];
            agent.policy = Policy::new(rules.map(|rule| rule.parse().unwrap()).to_vec());
        },
    )
    .await
}

fn port(rig: &Rig) -> SocketAddr {
    rig.server.ports()[1].1.inet().unwrap()
}

/// Sends `text` and returns the connection, the status, the head in lower case and the body.
async fn say(rig: &Rig, text: &str) -> (TcpStream, u16, String, String) {
    let mut visitor = connect(port(rig)).await.unwrap();
    let (status, head, body) = say_on(&mut visitor, text).await;
    (visitor, status, head, body)
}

async fn say_on(visitor: &mut TcpStream, text: &str) -> (u16, String, String) {
    visitor.write_all(text.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = within(LONG, "the head", visitor.read_u8()).await;
        head.push(byte.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    let read = within(LONG, "the body", visitor.read_exact(&mut body)).await;
    read.unwrap();
    (status, head, String::from_utf8(body).unwrap())
}

fn request(authority: &str) -> String {
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_the_agent_s_to_resolve_and_both_directions_end_by_themselves() {
    for dialect in [Dialect::Native, Dialect::Remotedialer] {
        let rig = rig(dialect, |_| {}).await;
        let target = rig.target.local_addr().unwrap().port();
        let (mut visitor, status, head, _) =
            say(&rig, &request(&format!("localhost:{target}"))).await;
        assert_eq!(status, 200);
        assert!(
            !head.contains("content-length") && !head.contains("transfer-encoding"),
            "{head}"
        );
        let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
        round_trip(&mut visitor, &mut target).await;
        visitor.write_all(b"question").await.unwrap();
        if dialect == Dialect::Native {
            visitor.shutdown().await.unwrap();
            let read = within(PROMPT, "the question", drain(&mut target)).await;
            assert_eq!(read.unwrap(), 8);
        } else {
            target.read_exact(&mut [0; 8]).await.unwrap();
        }
        target.write_all(b"answer").await.unwrap();
        drop(target);
        let read = within(PROMPT, "the answer", drain(&mut visitor)).await;
        assert_eq!(read.unwrap(), 6);
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_say_that_it_has_no_content() {
    let rig = rig(Dialect::Native, |_| {}).await;
    let target = rig.target.local_addr().unwrap();
    let request =
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nContent-Length: 0\r\n\r\n");
    let (mut visitor, status, ..) = say(&rig, &request).await;
    assert_eq!(status, 200);
    let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
    round_trip(&mut visitor, &mut target).await;
    drop((visitor, target));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_behind_the_request_is_not_lost() {
    let rig = rig(Dialect::Native, |_| {}).await;
    let target = rig.target.local_addr().unwrap().to_string();
    for length in [5, 1024 * 1024] {
        let data = pattern(length);
        let mut visitor = connect(port(&rig)).await.unwrap();
        let all = [request(&target).as_bytes(), &data].concat();
        let exchange = async {
            let send = async {
                visitor.write_all(&all).await.unwrap();
                visitor.shutdown().await.unwrap();
            };
            let serve = async {
                let (mut target, _) = rig.target.accept().await.unwrap();
                let mut received = Vec::new();
                target.read_to_end(&mut received).await.unwrap();
                target.write_all(b"answer").await.unwrap();
                received
            };
            tokio::join!(send, serve).1
        };
        assert!(within(LONG, "the exchange", exchange).await == data);
        let mut answer = String::new();
        let read = within(PROMPT, "the answer", visitor.read_to_string(&mut answer)).await;
        read.unwrap();
        assert!(answer.ends_with("\r\n\r\nanswer"), "{answer}");
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_says_why_there_is_no_stream() {
    let hole = BlackHole::open().await;
    // Bound, but not listening.
    let held = TcpSocket::new_v4().unwrap();
    held.bind(loopback()).unwrap();
    let closed = of_the_world(&held).local_addr().unwrap().to_string();
    let rig = rig_that_dials(Duration::from_secs(1), Dialect::Native, |_| {}).await;
    let mut visitor = connect(port(&rig)).await.unwrap();
    for (authority, expected, why) in [
        ("127.0.0.2:80", 403, "does not allow"),
        (closed.as_str(), 502, "refused"),
        ("nowhere.invalid:80", 502, "resolve"),
        ("nowhere.invalid:81", 403, "does not allow"),
        (&hole.address.to_string(), 504, "in time"),
        ("127.0.0.1:0", 400, "host:port"),
        ("[::1:80", 400, ""),
    ] {
        // The connection is good for another try, if its request was well formed.
        let (status, head, body) = say_on(&mut visitor, &request(authority)).await;
        assert_eq!(status, expected, "{authority}: {body}");
        assert!(body.to_ascii_lowercase().contains(why), "{body}");
        if head.contains("connection: close") {
            visitor = connect(port(&rig)).await.unwrap();
        }
    }
    let (_, status, head, body) = say(&rig, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status, 405);
    assert!(
        head.contains("allow: connect") && body.contains("CONNECT"),
        "{head}{body}"
    );
    let (_, status, ..) = say(
        &rig,
        "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
    )
    .await;
    assert_eq!(status, 400);
    let target = rig.target.local_addr().unwrap().to_string();
    rig.agent.drain(Duration::ZERO).await;
    until("the agent's end", || !rig.server.has_agent("web")).await;
    let (status, _, body) = say_on(
        &mut connect(rig.server.ports()[1].1.inet().unwrap())
            .await
            .unwrap(),
        &request(&target),
    )
    .await;
    assert_eq!(status, 503, "{body}");
}

/// Takes one request at the target, answers it with `body`, and returns its head and its content.
async fn answer(rig: &Rig, body: &str) -> (String, String) {
    let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(LONG, "the head", target.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let lower = head.to_ascii_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut content = vec![0; length];
    let read = within(LONG, "the content", target.read_exact(&mut content)).await;
    read.unwrap();
    let response = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    target.write_all(response.as_bytes()).await.unwrap();
    (head, String::from_utf8(content).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_passed_on_and_the_connection_is_good_for_more() {
    for dialect in [Dialect::Native, Dialect::Remotedialer] {
        let health = |server: &mut Config| {
            server.health_path = Some("/healthz".parse().unwrap());
        };
        let rig = rig(dialect, health).await;
        let target = rig.target.local_addr().unwrap();
        let mut visitor = connect(port(&rig)).await.unwrap();
        let request = format!(
            "PUT http://localhost:{}/a%2Fb?c=d HTTP/1.1\r\nHost: other.example\r\n\
             Proxy-Connection: keep-alive\r\nAuthorization: Basic eDp5\r\nX-Own: 1\r\n\
             Content-Length: 7\r\n\r\ncontent",
            target.port()
        );
        let served = tokio::join!(say_on(&mut visitor, &request), answer(&rig, "first"));
        let ((status, response, body), (head, content)) = served;
        assert_eq!(
            (status, body.as_str(), content.as_str()),
            (200, "first", "content")
        );
        assert!(
            response.contains("\r\nvia: 1.1 watertight\r\n"),
            "{response}"
        );
        assert!(head.starts_with("PUT /a%2Fb?c=d HTTP/1.1\r\n"), "{head}");
        let lower = head.to_ascii_lowercase();
        assert!(lower.contains(&format!("\r\nhost: localhost:{}\r\n", target.port())));
        assert!(
            !lower.contains("other.example") && !lower.contains("proxy-"),
            "{head}"
        );
        assert!(
            lower.contains("\r\nauthorization: basic edp5\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nX-Own: 1\r\n"), "{head}");
        // The connection serves another request, and then a stream.
        let request = format!("GET http://{target}/healthz HTTP/1.1\r\nHost: {target}\r\n\r\n");
        let served = tokio::join!(say_on(&mut visitor, &request), answer(&rig, "second"));
        let ((status, _, body), (head, _)) = served;
        assert_eq!((status, body.as_str()), (200, "second"));
        assert!(head.starts_with("GET /healthz HTTP/1.1\r\n"), "{head}");
        let (status, ..) = say_on(&mut visitor, &self::request(&target.to_string())).await;
        assert_eq!(status, 200);
        let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
        round_trip(&mut visitor, &mut target).await;
        drop((visitor, target));
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_has_sent_its_plain_request_may_finish() {
    let rig = rig(Dialect::Native, |_| {}).await;
    let target = rig.target.local_addr().unwrap();
    let mut visitor = connect(port(&rig)).await.unwrap();
    let request = format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n");
    visitor.write_all(request.as_bytes()).await.unwrap();
    visitor.shutdown().await.unwrap();
    answer(&rig, "whole").await;
    let mut response = String::new();
    let read = within(LONG, "the response", visitor.read_to_string(&mut response)).await;
    read.unwrap();
    assert!(response.ends_with("\r\n\r\nwhole"), "{response}");
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_has_the_rights_and_logins_of_connect() {
    let rig = rig(Dialect::Native, |server| {
        let Port::Connect(proxy) = &mut server.ports[0] else {
            panic!("not CONNECT")
        };
        proxy.login = true;
        let users = Users::of_pair("anna:sec:ret").unwrap();
        server.access.set_users(users);
        let targets = vec!["127.0.0.1:*".parse().unwrap()];
        let grant = Grant {
            tokens: vec![Token::new("secret", "test").unwrap().digest()],
            rights: Rights {
                targets: Some(Policy::new(targets)),
                ..Rights::default()
            },
            ..Grant::default()
        };
        server.access.grant("web".to_owned(), grant);
    })
    .await;
    let target = rig.target.local_addr().unwrap();
    let with = |uri: &str, header: &str| format!("GET {uri} HTTP/1.1\r\nHost: a\r\n{header}\r\n");
    let right = "Proxy-Authorization: Basic YW5uYTpzZWM6cmV0\r\n";
    let uri = format!("http://{target}/");
    for header in ["", "Authorization: Basic YW5uYTpzZWM6cmV0\r\n"] {
        let (_, status, head, _) = say(&rig, &with(&uri, header)).await;
        assert_eq!(status, 407, "{header}");
        assert!(head.contains("proxy-authenticate: basic realm="), "{head}");
    }
    for (uri, expected) in [
        ("http://127.0.0.2/", 403),
        ("http://localhost:1/", 403),
        ("https://127.0.0.1/", 501),
        ("http://127.0.0.1:0/", 400),
        ("/", 405),
    ] {
        let (_, status, _, body) = say(&rig, &with(uri, right)).await;
        assert_eq!(status, expected, "{uri}: {body}");
        assert!(body.starts_with("watertight: "), "{body}");
    }
    let request = with(&uri, right);
    let served = tokio::join!(say(&rig, &request), answer(&rig, "ok"));
    let ((visitor, status, _, body), (head, _)) = served;
    assert_eq!((status, body.as_str()), (200, "ok"));
    assert!(!head.to_ascii_lowercase().contains("proxy-auth"), "{head}");
    drop(visitor);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_credentials_only_they_open_the_door() {
    let rig = rig(Dialect::Native, |server| {
        let Port::Connect(proxy) = &mut server.ports[0] else {
            panic!("not CONNECT")
        };
        proxy.login = true;
        let users = Users::of_pair("anna:sec:ret").unwrap();
        server.access.set_users(users);
    })
    .await;
    let target = rig.target.local_addr().unwrap();
    let with =
        |header: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{header}\r\n");
    let right = "Proxy-Authorization: basic YW5uYTpzZWM6cmV0\r\n";
    for header in [
        "",
        // anna:secret
        "Proxy-Authorization: Basic YW5uYTpzZWNyZXQ=\r\n",
        "Proxy-Authorization: Bearer YW5uYTpzZWM6cmV0\r\n",
        "Proxy-Authorization: Basic\r\n",
        "Proxy-Authorization: Basic !\r\n",
        "Authorization: Basic YW5uYTpzZWM6cmV0\r\n",
        &format!("{right}{right}"),
    ] {
        let (_, status, head, _) = say(&rig, &with(header)).await;
        assert_eq!(status, 407, "{header}");
        assert!(head.contains("proxy-authenticate: basic realm="), "{head}");
    }
    let (mut visitor, status, ..) = say(&rig, &with(right)).await;
    assert_eq!(status, 200);
    let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
    round_trip(&mut visitor, &mut target).await;
    drop((visitor, target));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_slow_or_long_is_refused_and_counted() {
    let timeout = Duration::from_millis(200);
    let rig = rig(Dialect::Native, |server| {
        server.header_timeout = Some(timeout)
    })
    .await;
    let mut slow = connect(port(&rig)).await.unwrap();
    slow.write_all(b"CONNECT 127").await.unwrap();
    let _ = within(PROMPT, "the end", drain(&mut slow)).await;
    let mut long = connect(port(&rig)).await.unwrap();
    let head = format!("CONNECT 127.0.0.1:1 HTTP/1.1\r\nA: {}", "a".repeat(100_000));
    let _ = long.write_all(head.as_bytes()).await;
    let _ = within(PROMPT, "the end", drain(&mut long)).await;
    rig.at_rest().await;
    let text = rig.server.counters().text().unwrap();
    assert!(
        text.contains("watertight_limit_rejections_total{limit=\"header\"} 2"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_leaves_during_the_dial_calls_it_off() {
    for dialect in [Dialect::Native, Dialect::Remotedialer] {
        let hole = BlackHole::open().await;
        let rig = rig(dialect, |_| {}).await;
        for early in ["", "early"] {
            let mut visitor = connect(port(&rig)).await.unwrap();
            let all = request(&hole.address.to_string()) + early;
            visitor.write_all(all.as_bytes()).await.unwrap();
            until("the dial", || hole.dials() == 1).await;
            if early.is_empty() {
                drop(visitor);
            } else {
                reset(visitor);
            }
            rig.at_rest().await;
            until("the end of the dial", || hole.dials() == 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ends_of_visitor_and_target_are_told_each_other() {
    let rig = rig(Dialect::Native, |_| {}).await;
    let target = rig.target.local_addr().unwrap().to_string();
    let pair = async || {
        let (visitor, ..) = say(&rig, &request(&target)).await;
        let (target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
        (visitor, target)
    };
    let (visitor, mut target) = pair().await;
    reset(visitor);
    within(PROMPT, "the reset", drain(&mut target))
        .await
        .unwrap_err();
    let (mut visitor, target) = pair().await;
    reset(target);
    within(PROMPT, "the reset", drain(&mut visitor))
        .await
        .unwrap_err();
    rig.at_rest().await;
}
