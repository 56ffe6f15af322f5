//! Connections that leave HTTP by `Upgrade`, at the HTTP front.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, client_async};

use crate::front::{Client, OK, path, request};
use crate::rig::{LONG, PROMPT, Rig, drain, reset, with_http, within};

const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n";

async fn rig() -> Rig {
    Rig::start_with(with_http, |_| {}).await
}

/// Asks for the protocol `echo/1`, and sends `early` with the request. Returns the visitor, and the
/// target with the head of the request.
async fn ask(rig: &Rig, early: &str) -> (Client, String, BufReader<TcpStream>) {
    let mut client = Client::connect(rig).await;
    let head = format!(
        "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: echo/1\r\nSec-WebSocket-Key: abc\r\n\r\n{early}",
        path(rig, "ws")
    );
    client.send(&head).await;
    let (head, io) = request(rig).await;
    (client, head.to_ascii_lowercase(), io)
}

async fn expect(io: &mut BufReader<TcpStream>, wanted: &str) {
    let mut bytes = vec![0; wanted.len()];
    let read = io.read_exact(&mut bytes);
    within(LONG, wanted, read).await.unwrap();
    assert_eq!(bytes, wanted.as_bytes());
}

async fn end(io: &mut BufReader<TcpStream>) {
    let mut byte = [0];
    let read = io.read(&mut byte);
    assert_eq!(within(LONG, "the end", read).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_passes_both_ways_and_each_half_has_its_end() {
    let rig = rig().await;
    let (mut client, head, mut target) = ask(&rig, "early").await;
    for line in [
        "connection: upgrade",
        "upgrade: echo/1",
        "sec-websocket-key: abc",
    ] {
        assert!(head.lines().any(|it| it == line), "{line}: {head}");
    }
    // Bytes of the new protocol may come with either head.
    let answer = format!("{SWITCHED}late");
    target.write_all(answer.as_bytes()).await.unwrap();
    let head = client.head().await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for line in ["connection: upgrade", "upgrade: echo/1"] {
        assert!(head.lines().any(|it| it == line), "{line}: {head}");
    }
    expect(&mut client.io, "late").await;
    expect(&mut target, "early").await;
    for n in 0..100 {
        client.send(&format!("question {n}")).await;
        expect(&mut target, &format!("question {n}")).await;
        let answer = format!("answer {n}");
        target.write_all(answer.as_bytes()).await.unwrap();
        expect(&mut client.io, &answer).await;
    }
    client.io.shutdown().await.unwrap();
    end(&mut target).await;
    target.write_all(b"goodbye").await.unwrap();
    expect(&mut client.io, "goodbye").await;
    drop(target);
    end(&mut client.io).await;
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_ends_first() {
    let rig = rig().await;
    let (mut client, _, mut target) = ask(&rig, "").await;
    target.write_all(SWITCHED.as_bytes()).await.unwrap();
    client.head().await;
    target.shutdown().await.unwrap();
    end(&mut client.io).await;
    client.send("the rest").await;
    expect(&mut target, "the rest").await;
    drop(client);
    end(&mut target).await;
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_either_side_resets_the_other() {
    let rig = rig().await;
    for visitor_resets in [true, false] {
        let (mut client, _, mut target) = ask(&rig, "").await;
        target.write_all(SWITCHED.as_bytes()).await.unwrap();
        client.head().await;
        let (first, mut second) = if visitor_resets {
            (client.io, target)
        } else {
            (target, client.io)
        };
        reset(first.into_inner());
        let ended = drain(second.get_mut());
        within(PROMPT, "the reset", ended).await.unwrap_err();
    }
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_may_decline_and_none_may_switch_unasked() {
    let rig = rig().await;
    let (mut client, _, mut target) = ask(&rig, "").await;
    target.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(client.reply().await.status, 200);
    drop(target);
    let path = path(&rig, "");
    let asked = client.get(&path);
    let unasked = async {
        let (head, mut target) = request(&rig).await;
        assert!(head.to_ascii_lowercase().contains("connection: close"));
        target.write_all(SWITCHED.as_bytes()).await.unwrap();
    };
    let (reply, ()) = tokio::join!(asked, unasked);
    assert_eq!(reply.status, 502);
    drop(client);
    rig.at_rest().await;
}

/// Passes messages between a WebSocket of a visitor and one of the target.
pub(crate) async fn pass_messages<S>(rig: &Rig, visitor: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let url = format!("ws://localhost{}", path(rig, "socket?a=b"));
    let opened = client_async(url, visitor);
    let accepted = async {
        let (stream, _) = rig.target.accept().await.unwrap();
        accept_async(stream).await.unwrap()
    };
    let both = async { tokio::join!(opened, accepted) };
    let (opened, mut target) = within(LONG, "the WebSocket", both).await;
    let (mut visitor, _) = opened.unwrap();
    for length in [0, 1, 125, 70_000] {
        let message = Message::binary(vec![7; length]);
        visitor.send(message.clone()).await.unwrap();
        let came = within(LONG, "a message", target.next()).await;
        assert_eq!(came.unwrap().unwrap(), message);
        target.send(message.clone()).await.unwrap();
        let came = within(LONG, "a message", visitor.next()).await;
        assert_eq!(came.unwrap().unwrap(), message);
    }
    visitor.close(None).await.unwrap();
    let end = async { while target.next().await.is_some_and(|it| it.is_ok()) {} };
    within(LONG, "the end of the target's", end).await;
    // The server closes the connection first (RFC 6455, section 7.1.1).
    drop(target);
    let end = async { while visitor.next().await.is_some_and(|it| it.is_ok()) {} };
    within(LONG, "the end of the visitor's", end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes() {
    let rig = rig().await;
    let visitor = Client::connect(&rig).await.io.into_inner();
    pass_messages(&rig, visitor).await;
    rig.at_rest().await;
}
