//! Wrong secrets: what they cost whoever presents them, and what they do not cost others.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::admin;
use tunnel::agent::Agent;
use tunnel::io::token::Token;
use tunnel::login::Users;
use tunnel::server::config::{HttpPort, HttpSocket};
use tunnel::server::{Config, Port};

use crate::rig::{PROMPT, Rig, agent_config, loopback, until, within};
use crate::world::connect;

fn with_ports(config: &mut Config) {
    let users = Users::of_pair("anna:secret").unwrap();
    let mut admin = admin::Config::new(loopback());
    admin.users = users.clone();
    config.admin = Some(admin);
    config.access.set_users(users);
    let proxy = |kind: fn(_) -> Port| {
        let mut proxy: tunnel::server::config::port::ProxyPort = "127.0.0.1:0=web".parse().unwrap();
        proxy.login = true;
        kind(proxy)
    };
    let http = HttpPort {
        login: true,
        ..HttpPort::new(config.listen.into(), HttpSocket::Shared)
    };
    config.ports = vec![proxy(Port::Socks5), proxy(Port::Connect), http.into()];
}

fn basic(user: &str, password: &str) -> String {
    let pair = BASE64.encode(format!("{user}:{password}").as_bytes());
    format!("Authorization: Basic {pair}\r\n")
}

/// Sends a request and returns the head of the response in lower case.
async fn ask(visitor: &mut TcpStream, request: &str) -> String {
    visitor.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(visitor.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    visitor.read_exact(&mut vec![0; length]).await.unwrap();
    head
}

async fn connect_request(visitor: &mut TcpStream, user: &str, password: &str) -> u16 {
    let credentials = basic(user, password);
    let request =
        format!("CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\nProxy-{credentials}\r\n");
    let head = ask(visitor, &request).await;
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

fn count(text: &str, port: &str, reason: &str) -> u64 {
    let name = format!("watertight_logins_refused_total{{port=\"{port}\",reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_are_bounded_and_who_is_right_gets_in_from_the_same_address() {
    let rig = Rig::start_with(with_ports, |_| {}).await;
    let port = rig.server.ports()[2].1.inet().unwrap();
    let (looked_at, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    let begun = Instant::now();
    let guess = async |guesser: usize| {
        let mut visitor = connect(port).await.unwrap();
        for number in 0.. {
            // Half of them guess the password of somebody who exists.
            let user = if number % 2 == 0 { "anna" } else { "nobody" };
            let password = format!("{guesser}-{number}");
            match connect_request(&mut visitor, user, &password).await {
                407 => looked_at.fetch_add(1, Ordering::Relaxed),
                429 => refused.fetch_add(1, Ordering::Relaxed),
                status => panic!("{status}"),
            };
        }
    };
    let guessing = async {
        let guessers = (0..120).map(guess);
        futures_util::future::join_all(guessers).await;
    };
    let others = async {
        until("the block", || refused.load(Ordering::Relaxed) > 0).await;
        // The agent has been in before, and is a name among many.
        let mut config = agent_config(&rig.server, &[]);
        config.backoff = (Duration::from_millis(20), Duration::from_millis(20));
        let again = Agent::start(config, None);
        within(PROMPT, "the agent", again.connected()).await;
        again.drain(PROMPT).await;
        // As long as nobody has spent her tries.
        let mut bearer = connect(rig.server.front()).await.unwrap();
        let request = "GET /client/web/http/a HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let head = ask(&mut bearer, request).await;
        assert!(head.starts_with("http/1.1 401 "), "{head}");
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    tokio::select! {
        () = guessing => {}
        () = others => {}
    }
    let (looked_at, refused) = (
        looked_at.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed),
    );
    println!(
        "{looked_at} guesses were looked at, {refused} refused in {:?}",
        begun.elapsed()
    );
    assert!((100..=110).contains(&looked_at), "{looked_at}");
    let text = rig.server.counters().text().unwrap();
    assert!(count(&text, "connect", "wrong") >= u64::from(looked_at));
    assert!(count(&text, "connect", "too many") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_gets_in_from_an_address_that_is_blocked() {
    let rig = Rig::start_with(with_ports, |_| {}).await;
    let port = rig.server.ports()[2].1.inet().unwrap();
    let block = async |guesser: usize| {
        let mut visitor = connect(port).await.unwrap();
        while connect_request(&mut visitor, "nobody", &guesser.to_string()).await != 429 {}
    };
    futures_util::future::join_all((0..100).map(block)).await;
    let mut visitor = connect(port).await.unwrap();
    // The agent does not allow the target.
    assert_eq!(connect_request(&mut visitor, "anna", "secret").await, 403);
    let mut visitor = connect(port).await.unwrap();
    let request = format!(
        "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nProxy-{}\r\n",
        basic("nobody", "x")
    );
    let head = ask(&mut visitor, &request).await;
    assert!(head.contains("retry-after: "), "{head}");
}

async fn get(at: SocketAddr, path: &str, header: &str) -> String {
    let mut visitor = connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n");
    ask(&mut visitor, &request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_counts_its_refused_logins() {
    let rig = Rig::start_with(with_ports, |_| {}).await;
    let ports = rig.server.ports();
    let [socks5, connect_port] = [1, 2].map(|at: usize| ports[at].1.inet().unwrap());
    let wrong = basic("anna", "wrong");
    let mut visitor = connect(socks5).await.unwrap();
    let login = b"\x05\x01\x02\x01\x04anna\x05wrong";
    visitor.write_all(login).await.unwrap();
    let mut reply = [0; 4];
    visitor.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply, [5, 2, 1, 1]);
    let mut visitor = connect(connect_port).await.unwrap();
    assert_eq!(connect_request(&mut visitor, "anna", "wrong").await, 407);
    let head = get(rig.server.front(), "/client/web/http/a/", &wrong).await;
    assert!(head.starts_with("http/1.1 401 "), "{head}");
    let admin = rig.server.admin().unwrap();
    let head = get(admin, "/metrics", &wrong).await;
    assert!(head.starts_with("http/1.1 401 "), "{head}");
    let mut config = agent_config(&rig.server, &[]);
    config.token = Token::new("wrong", "test").unwrap();
    let agent = Agent::start(config, None);
    until("the refusal", || {
        let text = rig.server.counters().text().unwrap();
        count(&text, "agent", "wrong") > 0
    })
    .await;
    agent.drain(Duration::ZERO).await;
    let text = rig.server.counters().text().unwrap();
    for port in ["socks5", "connect", "http", "admin"] {
        assert_eq!(count(&text, port, "wrong"), 1, "{port}");
        assert_eq!(count(&text, port, "too many"), 0, "{port}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_port_with_users_shows_to_others_only_that_it_lives() {
    let rig = Rig::start_with(with_ports, |_| {}).await;
    let admin = rig.server.admin().unwrap();
    for (path, without, with) in [
        ("/", 401, 200),
        ("/metrics", 401, 200),
        ("/admin/sessions", 401, 200),
        ("/admin/streams", 401, 200),
        ("/nothing", 401, 404),
        ("/livez", 200, 200),
        ("/readyz", 200, 200),
    ] {
        for (header, expected) in [("", without), (&*basic("anna", "secret"), with)] {
            let head = get(admin, path, header).await;
            let expected = format!("http/1.1 {expected} ");
            assert!(head.starts_with(&expected), "{path}: {head}");
        }
    }
}
