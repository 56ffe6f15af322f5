//! The front with TLS: handshakes that fail, and visitors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tunnel::agent::Agent;
use tunnel::io::tls::{Client, ClientFiles};
use tunnel::metrics::Metrics;
use tunnel::server::Server;

use super::{Secured, by_tls, failures};
use crate::rig::{
    LONG, PROMPT, agent_config, connect_fails, drain, reset, round_trip, server_config, until,
    with_http, within,
};
use crate::switch::pass_messages;
use crate::world::connect;

/// A visitor that speaks TLS, by code that is not the tunnel's.
pub(super) async fn https(server: &Server, files: ClientFiles) -> TlsStream<TcpStream> {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(files.ca_file.unwrap()).unwrap();
    roots
        .add(rustls_pki_types::CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = "127.0.0.1".try_into().unwrap();
    let socket = connect(server.front()).await.unwrap();
    let handshake = connector.connect(name, socket);
    within(PROMPT, "the handshake", handshake).await.unwrap()
}

async fn fails(server: &Server, reason: &str, count: u64) {
    until(reason, || failures(server, reason) == count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_fails_costs_its_own_connection() {
    let secured = Secured::start_with(
        |server| server.tls_handshake_timeout = Duration::from_millis(300),
        |_| {},
    )
    .await;
    let server = &secured.rig.server;
    let (mut visitor, mut target) = secured.rig.pair().await;
    let before = server.tasks();

    let mut plain = connect(server.front()).await.unwrap();
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    let read = plain.read_to_string(&mut answer);
    within(PROMPT, "the answer", read).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400 ")
            && answer.contains("\r\nServer: watertight\r\n")
            && answer.contains("\r\nContent-Length: 84\r\n")
            && answer.ends_with("wss:// for ws:\n"),
        "{answer}"
    );
    drop(plain);
    fails(server, "plain http", 1).await;

    for garbage in [
        &b"\0\0\0\0"[..],
        b"SSH-2.0-x",
        b"\x16\x03\x01\xff\xff\xff",
        &[0xff; 5000],
    ] {
        let mut stranger = connect(server.front()).await.unwrap();
        stranger.write_all(garbage).await.unwrap();
        let _ = within(PROMPT, "the end", drain(&mut stranger)).await;
    }
    // SSH begins as HTTP does.
    fails(server, "plain http", 2).await;
    fails(server, "not tls", 3).await;

    for part in [&b""[..], b"\x16", b"\x16\x03\x01\x00\x80\x01\x00"] {
        let mut slow = connect(server.front()).await.unwrap();
        slow.write_all(part).await.unwrap();
        let _ = within(PROMPT, "the end", drain(&mut slow)).await;
    }
    fails(server, "timed out", 3).await;

    for part in [&b""[..], b"\x16\x03\x01\x00\x80\x01\x00"] {
        let mut gone = connect(server.front()).await.unwrap();
        gone.write_all(part).await.unwrap();
        gone.shutdown().await.unwrap();
        let _ = within(PROMPT, "the end", drain(&mut gone)).await;
        reset(connect(server.front()).await.unwrap());
    }
    fails(server, "gone", 4).await;

    // What opened the stream may still have been among them.
    until("the end of all", || server.tasks() <= before).await;
    round_trip(&mut visitor, &mut target).await;
    assert!(server.has_agent("web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_finish_hold_no_more_than_their_connections() {
    let secured = Secured::start_with(
        |server| {
            server.handshakes_max = 4;
            server.tls_handshake_timeout = Duration::from_millis(500);
        },
        |_| {},
    )
    .await;
    let server = &secured.rig.server;
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(connect(server.front()).await.unwrap());
    }
    // They have their time one after the other, and then it is the turn of the next.
    let _visitor = {
        let files = secured.folder.trusting(&secured.signer);
        within(LONG, "a visitor behind them", patient(server, files)).await
    };
    assert!(failures(server, "timed out") >= 16);
    assert!(server.tasks() <= 4 + 2);
    within(LONG, "the drain", secured.rig.server.drain(LONG)).await;
}

/// As [`https`], with all the time in the world.
async fn patient(server: &Server, files: ClientFiles) -> tunnel::io::tls::Transport {
    use tunnel::io::socket::{NOBODY, Role, Socket};
    let socket = Socket::dial(server.front(), Role::Pool, NOBODY, "test").await;
    let client = Client::load(files).unwrap();
    client.connect("127.0.0.1", socket.unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_handshakes() {
    let secured = Secured::start_with(with_http, |_| {}).await;
    let mut slow = connect(secured.rig.server.front()).await.unwrap();
    slow.write_all(b"\x16").await.unwrap();
    until("the handshake", || secured.rig.server.tasks() >= 3).await;
    within(PROMPT, "the drain", secured.rig.server.drain(LONG)).await;
    let _ = within(PROMPT, "the end", drain(&mut slow)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_the_wrong_scheme_is_told() {
    let secured = Secured::start_with(with_http, |_| {}).await;
    let target = secured.rig.target.local_addr().unwrap();
    let plain = Server::start(server_config(target)).await.unwrap();
    for (server, secure, reason) in [
        (&secured.rig.server, false, "refused"),
        (&plain, true, "tls"),
    ] {
        let mut config = agent_config(server, &[]);
        config.name = "stranger".to_owned();
        config.tls = Client::load(secured.folder.trusting(&secured.signer)).unwrap();
        if secure {
            by_tls(&mut config);
        }
        let metrics = Metrics::new(None).unwrap();
        let agent = Agent::start(config, Some(Arc::clone(&metrics)));
        connect_fails(&metrics, reason).await;
        within(PROMPT, "the drain", agent.drain(Duration::ZERO)).await;
    }
    fails(
        &secured.rig.server,
        "plain http",
        failures(&secured.rig.server, "plain http"),
    )
    .await;
    assert!(failures(&secured.rig.server, "plain http") > 0);
}

fn request(target: SocketAddr) -> String {
    format!(
        "POST /client/web/http/{target}/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nask"
    )
}

async fn take_request(target: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"ask") {
        assert!(target.read_buf(&mut head).await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_come_by_tls_again_and_again() {
    let secured = Secured::start_with(with_http, |_| {}).await;
    let address = secured.rig.target.local_addr().unwrap();
    let files = secured.folder.trusting(&secured.signer);
    let mut visitor = https(&secured.rig.server, files).await;
    for round in 0..3 {
        visitor
            .write_all(request(address).as_bytes())
            .await
            .unwrap();
        let accept = secured.rig.target.accept();
        let (mut target, _) = within(PROMPT, "the dial", accept).await.unwrap();
        within(PROMPT, "the request", take_request(&mut target)).await;
        let body = vec![round; 300_000];
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        target.write_all(head.as_bytes()).await.unwrap();
        target.write_all(&body).await.unwrap();
        let mut read = Vec::new();
        let all = async {
            while !read.ends_with(&body) {
                assert!(visitor.read_buf(&mut read).await.unwrap() > 0);
            }
        };
        within(PROMPT, "the response", all).await;
    }
    secured.rig.at_rest_but(1).await;
    drop(visitor);
    secured.rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_by_tls() {
    let secured = Secured::start_with(with_http, |_| {}).await;
    let files = secured.folder.trusting(&secured.signer);
    let visitor = https(&secured.rig.server, files).await;
    pass_messages(&secured.rig, visitor).await;
    secured.rig.at_rest().await;
}

/// With `close_notify`, with a FIN alone, and with both; the response comes nevertheless, and then
/// TLS says that it was all.
#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_finishes_first_gets_its_response() {
    let secured = Secured::start_with(with_http, |_| {}).await;
    let address = secured.rig.target.local_addr().unwrap();
    for (notify, finish) in [(true, false), (false, true), (true, true)] {
        let files = secured.folder.trusting(&secured.signer);
        let mut visitor = https(&secured.rig.server, files).await;
        visitor
            .write_all(request(address).as_bytes())
            .await
            .unwrap();
        if notify {
            visitor.get_mut().1.send_close_notify();
            visitor.flush().await.unwrap();
        }
        if finish {
            visitor.get_mut().0.shutdown().await.unwrap();
        }
        let accept = secured.rig.target.accept();
        let (mut target, _) = within(PROMPT, "the dial", accept).await.unwrap();
        within(PROMPT, "the request", take_request(&mut target)).await;
        target
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
            .await
            .unwrap();
        let mut read = Vec::new();
        // An end that TLS did not announce would be an error here.
        let all = visitor.read_to_end(&mut read);
        within(PROMPT, "the response", all).await.unwrap();
        assert!(read.ends_with(b"\r\n\r\ndone"));
    }
    secured.rig.at_rest().await;
}

/// An answer that breaks off is no whole answer, inside TLS as without.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_does_not_end_in_order() {
    let secured = Secured::start_with(with_http, |_| {}).await;
    let address = secured.rig.target.local_addr().unwrap();
    let files = secured.folder.trusting(&secured.signer);
    let mut visitor = https(&secured.rig.server, files).await;
    visitor
        .write_all(request(address).as_bytes())
        .await
        .unwrap();
    let accept = secured.rig.target.accept();
    let (mut target, _) = within(PROMPT, "the dial", accept).await.unwrap();
    within(PROMPT, "the request", take_request(&mut target)).await;
    target
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nhalf")
        .await
        .unwrap();
    let mut read = Vec::new();
    let half = async {
        while !read.ends_with(b"half") {
            assert!(visitor.read_buf(&mut read).await.unwrap() > 0);
        }
    };
    within(PROMPT, "the first half", half).await;
    reset(target);
    let end = within(PROMPT, "the end", visitor.read_to_end(&mut read)).await;
    assert!(end.is_err());
    secured.rig.at_rest().await;
}

/// A visitor that does not read holds only its own connection, which ends with the agent.
#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_does_not_read_is_released_with_its_request() {
    let secured = Secured::start_with(with_http, |_| {}).await;
    let address = secured.rig.target.local_addr().unwrap();
    let files = secured.folder.trusting(&secured.signer);
    let mut visitor = https(&secured.rig.server, files).await;
    visitor
        .write_all(request(address).as_bytes())
        .await
        .unwrap();
    let accept = secured.rig.target.accept();
    let (mut target, _) = within(PROMPT, "the dial", accept).await.unwrap();
    within(PROMPT, "the request", take_request(&mut target)).await;
    target.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    crate::rig::fill(&mut target).await;
    reset(target);
    secured.rig.at_rest().await;
    let mut rest = Vec::new();
    let end = within(PROMPT, "the end", visitor.read_to_end(&mut rest)).await;
    assert!(end.is_err());
}
