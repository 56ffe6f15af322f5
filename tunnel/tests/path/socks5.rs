//! SOCKS5 ports, spoken to byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tunnel::login::Users;
use tunnel::policy::Policy;
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::server::{Config, Port};
use tunnel::target::Target;
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
            server.ports = vec![Port::Socks5("127.0.0.1:0=web".parse().unwrap())];
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

async fn visitor(rig: &Rig) -> TcpStream {
    connect(port(rig)).await.unwrap()
}

/// A request by name.
fn request(host: &str, port: u16) -> Vec<u8> {
    let mut request = vec![5, 1, 0, 3, u8::try_from(host.len()).unwrap()];
    request.extend(host.as_bytes());
    request.extend(port.to_be_bytes());
    request
}

async fn hear<const N: usize>(visitor: &mut TcpStream) -> [u8; N] {
    let mut reply = [0; N];
    let read = within(LONG, "the reply", visitor.read_exact(&mut reply)).await;
    read.unwrap();
    reply
}

/// Asks for `host` and returns the code of the answer.
async fn ask(rig: &Rig, host: &str, port: u16) -> (TcpStream, u8) {
    let mut visitor = visitor(rig).await;
    visitor.write_all(&[5, 1, 0]).await.unwrap();
    assert_eq!(hear(&mut visitor).await, [5, 0]);
    visitor.write_all(&request(host, port)).await.unwrap();
    let reply: [u8; 10] = hear(&mut visitor).await;
    assert_eq!([reply[0], reply[2], reply[3]], [5, 0, 1]);
    (visitor, reply[1])
}

fn rejections(rig: &Rig, limit: &str) -> u64 {
    let text = rig.server.counters().text().unwrap();
    let name = format!("watertight_limit_rejections_total{{limit=\"{limit}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_the_agent_s_to_resolve_and_both_directions_end_by_themselves() {
    for dialect in [Dialect::Native, Dialect::Remotedialer] {
        let rig = rig(dialect, |_| {}).await;
        let target = rig.target.local_addr().unwrap().port();
        let (mut visitor, code) = ask(&rig, "localhost", target).await;
        assert_eq!(code, 0);
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
async fn what_is_sent_behind_the_request_is_not_lost() {
    let rig = rig(Dialect::Native, |_| {}).await;
    let target = rig.target.local_addr().unwrap();
    let data = pattern(1024 * 1024);
    let mut visitor = visitor(&rig).await;
    let SocketAddr::V4(address) = target else {
        panic!("not IPv4")
    };
    let mut all = vec![5, 2, 0, 2, 5, 1, 0, 1];
    all.extend(address.ip().octets());
    all.extend(address.port().to_be_bytes());
    all.extend(&data);
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
    let mut answer = Vec::new();
    let read = within(PROMPT, "the answer", visitor.read_to_end(&mut answer)).await;
    read.unwrap();
    assert_eq!(
        answer,
        b"\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00answer"
    );
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_says_why_there_is_no_stream() {
    let hole = BlackHole::open().await;
    // Bound, but not listening.
    let held = TcpSocket::new_v4().unwrap();
    held.bind(loopback()).unwrap();
    let closed = of_the_world(&held).local_addr().unwrap().port();
    let rig = rig_that_dials(Duration::from_secs(1), Dialect::Native, |_| {}).await;
    for (host, port, expected) in [
        ("127.0.0.2", 80, 2),
        ("127.0.0.1", closed, 5),
        ("nowhere.invalid", 80, 4),
        ("nowhere.invalid", 81, 2),
        ("127.0.0.1", hole.address.port(), 6),
        ("127.0.0.1", 0, 1),
        ("not a name", 80, 1),
    ] {
        let (mut visitor, code) = ask(&rig, host, port).await;
        assert_eq!(code, expected, "{host}:{port}");
        let end = within(PROMPT, "the end", drain(&mut visitor)).await;
        assert_eq!(end.unwrap(), 0, "{host}:{port}");
    }
    for (command, expected) in [(2, 7), (4, 7)] {
        let mut visitor = visitor(&rig).await;
        visitor
            .write_all(&[5, 1, 0, 5, command, 0, 1, 127, 0, 0, 1, 0, 80])
            .await
            .unwrap();
        let reply: [u8; 12] = hear(&mut visitor).await;
        assert_eq!(reply[3], expected);
        within(PROMPT, "the end", drain(&mut visitor))
            .await
            .unwrap();
    }
    rig.agent.drain(Duration::ZERO).await;
    until("the agent's end", || !rig.server.has_agent("web")).await;
    let mut visitor = connect(rig.server.ports()[1].1.inet().unwrap())
        .await
        .unwrap();
    visitor
        .write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 80])
        .await
        .unwrap();
    let reply: [u8; 12] = hear(&mut visitor).await;
    assert_eq!(reply[3], 1);
}

/// A request of SOCKS4 for `ip`, and of SOCKS4a for `name` if there is one.
fn request_v4(ip: [u8; 4], port: u16, name: Option<&str>) -> Vec<u8> {
    let mut request = vec![4, 1];
    request.extend(port.to_be_bytes());
    request.extend(ip);
    request.extend(b"anna\0");
    if let Some(name) = name {
        request.extend(name.as_bytes());
        request.push(0);
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn socks4_is_served_by_address_and_by_name() {
    for dialect in [Dialect::Native, Dialect::Remotedialer] {
        let rig = rig(dialect, |_| {}).await;
        let target = rig.target.local_addr().unwrap().port();
        for request in [
            request_v4([127, 0, 0, 1], target, None),
            request_v4([0, 0, 0, 1], target, Some("localhost")),
        ] {
            let mut visitor = visitor(&rig).await;
            visitor.write_all(&request).await.unwrap();
            visitor.write_all(b"early").await.unwrap();
            assert_eq!(hear(&mut visitor).await, [0, 90, 0, 0, 0, 0, 0, 0]);
            let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
            let mut early = [0; 5];
            target.read_exact(&mut early).await.unwrap();
            assert_eq!(&early, b"early");
            round_trip(&mut visitor, &mut target).await;
        }
        // The other dialect acknowledges no stream, so that a refusal comes too late for an answer.
        let refused = [
            request_v4([127, 0, 0, 2], target, None),
            request_v4([0, 0, 0, 1], 81, Some("nowhere.invalid")),
            vec![4, 2, 0, 80, 127, 0, 0, 1, 0],
        ];
        let is_native = dialect == Dialect::Native;
        for request in refused.into_iter().filter(|_| is_native) {
            let mut visitor = visitor(&rig).await;
            visitor.write_all(&request).await.unwrap();
            assert_eq!(hear(&mut visitor).await, [0, 91, 0, 0, 0, 0, 0, 0]);
            let end = within(PROMPT, "the end", drain(&mut visitor)).await;
            assert_eq!(end.unwrap(), 0);
        }
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_credentials_only_they_open_the_door() {
    let rig = rig(Dialect::Native, |server| {
        let Port::Socks5(proxy) = &mut server.ports[0] else {
            panic!("not SOCKS5")
        };
        proxy.login = true;
        let users = Users::of_pair("anna:secret").unwrap();
        server.access.set_users(users);
    })
    .await;
    let target = rig.target.local_addr().unwrap().port();
    // Credentials are required.
    let mut visitor_without = visitor(&rig).await;
    visitor_without.write_all(&[5, 1, 0]).await.unwrap();
    assert_eq!(hear(&mut visitor_without).await, [5, 0xff]);
    within(PROMPT, "the end", drain(&mut visitor_without))
        .await
        .unwrap();
    // SOCKS4 cannot prove who asks.
    let mut visitor_v4 = visitor(&rig).await;
    let request_v4 = request_v4([127, 0, 0, 1], target, None);
    visitor_v4.write_all(&request_v4).await.unwrap();
    assert_eq!(hear(&mut visitor_v4).await, [0, 91, 0, 0, 0, 0, 0, 0]);
    within(PROMPT, "the end", drain(&mut visitor_v4))
        .await
        .unwrap();
    for (login, code) in [
        (&b"\x01\x04anna\x05wrong"[..], 1),
        (b"\x01\x04anna\x06secret", 0),
    ] {
        let mut visitor = visitor(&rig).await;
        visitor.write_all(&[5, 2, 0, 2]).await.unwrap();
        assert_eq!(hear(&mut visitor).await, [5, 2]);
        visitor.write_all(login).await.unwrap();
        assert_eq!(hear(&mut visitor).await, [1, code]);
        if code == 0 {
            visitor
                .write_all(&request("127.0.0.1", target))
                .await
                .unwrap();
            assert_eq!(hear::<10>(&mut visitor).await[1], 0);
            let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
            round_trip(&mut visitor, &mut target).await;
        } else {
            within(PROMPT, "the end", drain(&mut visitor))
                .await
                .unwrap();
        }
    }
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_never_ends_is_given_up_and_counted() {
    let timeout = Duration::from_millis(200);
    let rig = rig(Dialect::Native, |server| {
        server.header_timeout = Some(timeout)
    })
    .await;
    for begun in [&[][..], &[5], &[5, 1, 0, 5, 1, 0, 3, 200, b'a']] {
        let mut visitor = visitor(&rig).await;
        visitor.write_all(begun).await.unwrap();
        let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
        assert!(end.is_err(), "{begun:?}");
    }
    assert_eq!(rejections(&rig, "handshake"), 3);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_aborted_handshakes_leave_nothing() {
    let rig = rig(Dialect::Native, |_| {}).await;
    let target = rig.target.local_addr().unwrap().port();
    let whole = [&[5, 1, 0][..], &request("127.0.0.1", target), b"early"].concat();
    let port = port(&rig);
    let accepting = async {
        loop {
            drop(rig.target.accept().await.unwrap());
        }
    };
    let aborting = async {
        for round in 0..20 {
            let visitors = (0..50).map(|at| {
                let whole = &whole;
                async move {
                    let mut visitor = connect(port).await.unwrap();
                    let sent = visitor
                        .write_all(&whole[..(round * 50 + at) % (whole.len() + 1)])
                        .await;
                    sent.unwrap();
                    match at % 3 {
                        0 => reset(visitor),
                        1 => drop(visitor),
                        _ => {
                            visitor.shutdown().await.unwrap();
                            let _ = drain(&mut visitor).await;
                        }
                    }
                }
            });
            within(LONG, "the aborts", join_all(visitors)).await;
        }
    };
    tokio::select! {
        () = accepting => {}
        () = aborting => {}
    }
    // The visitors in the backlog have streams.
    let rest = async {
        loop {
            drop(rig.target.accept().await.unwrap());
        }
    };
    tokio::select! {
        () = rest => {}
        () = rig.at_rest() => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_leaves_during_the_dial_calls_it_off() {
    for dialect in [Dialect::Native, Dialect::Remotedialer] {
        let hole = BlackHole::open().await;
        let rig = rig(dialect, |_| {}).await;
        for early in [&b""[..], b"early"] {
            let mut visitor = visitor(&rig).await;
            let request = request("127.0.0.1", hole.address.port());
            visitor
                .write_all(&[&[5, 1, 0][..], &request, early].concat())
                .await
                .unwrap();
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
    let target: Target = format!("tcp/{}", rig.target.local_addr().unwrap())
        .parse()
        .unwrap();
    let (_, target_port) = target
        .authority()
        .rsplit_once(':')
        .map(|(host, port)| (host.to_owned(), port.parse().unwrap()))
        .unwrap();
    let pair = async || {
        let (visitor, _) = ask(&rig, "127.0.0.1", target_port).await;
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
