//! A scripted peer in the place of a Go server, which dials us or is dialed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tunnel::server;
use tunnel::server::Server;
use tunnel::wire::Dialect;
use tunnel::wire::remotedialer::Body;

use super::super::{Peer, data, text};
use super::{agent, config, count, peers};
use crate::rig::{LONG, PROMPT, drain, left, loopback, refused, server_config, until, within};
use crate::world::{TcpListener, connect};

/// A peer that has dialed our server as the Go server "east" would.
async fn dial_as(server: &Server, id: &str, token: &str) -> Result<Peer, u16> {
    let mut request = format!("ws://{}/connect", server.front())
        .into_client_request()
        .unwrap();
    for (name, value) in [("x-api-tunnel-id", id), ("x-api-tunnel-token", token)] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let socket = connect(server.front()).await.unwrap();
    match tokio_tungstenite::client_async(request, socket).await {
        Ok((websocket, _)) => Ok(Peer::new(websocket)),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            Err(response.status().as_u16())
        }
        Err(other) => panic!("{other}"),
    }
}

fn add(client: &'static str) -> Body {
    Body::AddClient(Bytes::from_static(client.as_bytes()))
}

fn remove(client: &'static str) -> Body {
    Body::RemoveClient(Bytes::from_static(client.as_bytes()))
}

/// Our server "west", and a listener in the place of the Go server "east".
async fn west(change: impl FnOnce(&mut server::Config)) -> (Server, TcpListener) {
    let east = TcpListener::bind(loopback()).await.unwrap();
    let peers = peers("west", &[("east", east.local_addr().unwrap())]);
    let mut config = config(loopback(), "127.0.0.1:9".parse().unwrap(), peers);
    change(&mut config);
    (Server::start(config).await.unwrap(), east)
}

/// Takes our server's link as a Go server would.
async fn take(east: &TcpListener) -> Peer {
    let (socket, _) = within(LONG, "the dial", east.accept()).await.unwrap();
    Peer::new(tokio_tungstenite::accept_async(socket).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_to_the_peer_that_announced_its_client() {
    let (west, _east) = west(|_| {}).await;
    let mut peer = dial_as(&west, "east", "shared").await.unwrap();
    refused(west.forwards()[0]).await;
    peer.send(0, add("web/-7")).await;
    until("the announcement", || west.has_agent("web")).await;
    let mut visitor = connect(west.forwards()[0]).await.unwrap();
    let address = Bytes::from_static(b"web::tcp/127.0.0.1:9");
    assert_eq!(peer.receive().await, (2, Body::Connect(address)));
    visitor.write_all(b"ping").await.unwrap();
    assert_eq!(peer.receive().await, (2, data(b"ping")));
    peer.send(2, data(b"pong")).await;
    peer.send(2, text("EOF")).await;
    assert_eq!(
        within(PROMPT, "the end", drain(&mut visitor))
            .await
            .unwrap(),
        4
    );
    peer.send(0, remove("web/-7")).await;
    until("the announcement", || !west.has_agent("web")).await;
    let counters = west.counters().text().unwrap();
    assert!(counters.contains("add_websocket_session{clientkey=\"east\",peer=\"true\"} 1"));
    assert_eq!(left(&counters, "connections"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_peer_announces_nothing() {
    let (west, _east) = west(|_| {}).await;
    for (id, token) in [("north", "shared"), ("east", "secret"), ("west", "shared")] {
        assert_eq!(
            dial_as(&west, id, token).await.err(),
            Some(401),
            "{id} {token}"
        );
    }
    let mut request = format!("ws://{}/connect", west.front())
        .into_client_request()
        .unwrap();
    for (name, value) in [("x-tunnel-id", "db"), ("authorization", "Bearer secret")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let socket = connect(west.front()).await.unwrap();
    let (websocket, _) = tokio_tungstenite::client_async(request, socket)
        .await
        .unwrap();
    let mut client = Peer::new(websocket);
    client.send(0, add("web/1")).await;
    client.send(99, data(b"?")).await;
    assert_eq!(client.receive().await.0, 99);
    assert!(west.has_agent("db") && !west.has_agent("web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn own_agents_come_before_those_of_a_peer() {
    let target = TcpListener::bind(loopback()).await.unwrap();
    let address = target.local_addr().unwrap();
    let (west, _east) = west(|config| config.forwards = server_config(address).forwards).await;
    let agent = agent(&west, address, Dialect::Native).await;
    until("the registration", || west.has_agent("web")).await;
    let mut peer = dial_as(&west, "east", "shared").await.unwrap();
    peer.send(0, add("web/1")).await;
    peer.send(99, data(b"?")).await;
    assert_eq!(peer.receive().await.0, 99);
    let _visitor = connect(west.forwards()[0]).await.unwrap();
    let (_target, _) = within(PROMPT, "the dial", target.accept()).await.unwrap();
    agent.drain(Duration::ZERO).await;
    // Until the agent is forgotten, its visitors are refused.
    let connect = within(PROMPT, "the peer's turn", async {
        loop {
            let _visitor = connect(west.forwards()[0]).await;
            let asked = tokio::time::timeout(Duration::from_millis(100), peer.receive());
            if let Ok((_, connect)) = asked.await {
                return connect;
            }
        }
    });
    let expected = format!("web::tcp/{address}");
    assert_eq!(connect.await, Body::Connect(expected.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_we_dial_is_told_of_our_agents_and_opens_streams_to_them() {
    let target = TcpListener::bind(loopback()).await.unwrap();
    let address = target.local_addr().unwrap();
    let (west, east) = west(|_| {}).await;
    let first = agent(&west, address, Dialect::Native).await;
    let mut peer = take(&east).await;
    let Body::AddClient(session) = peer.receive().await.1 else {
        panic!("not an announcement");
    };
    let key = std::str::from_utf8(&session)
        .unwrap()
        .strip_prefix("web/")
        .unwrap();
    // Go reads it as an int.
    assert!(key.parse::<i64>().is_ok(), "{key}");

    peer.send(2, Body::Connect(format!("web::tcp/{address}").into()))
        .await;
    peer.send(2, data(b"ping")).await;
    let (mut socket, _) = within(PROMPT, "the dial", target.accept()).await.unwrap();
    socket.read_exact(&mut [0; 4]).await.unwrap();
    socket.write_all(b"pong").await.unwrap();
    drop(socket);
    assert_eq!(peer.receive().await, (2, data(b"pong")));
    assert_eq!(peer.receive().await, (2, text("EOF")));
    for (connect, why) in [
        ("db::tcp/127.0.0.1:9", "tunnel disconnect"),
        ("web::tcp/192.0.2.1:9", "connect not allowed"),
        ("web::udp", "malformed address"),
        ("tcp/127.0.0.1:9", "malformed address"),
    ] {
        peer.send(3, Body::Connect(Bytes::from_static(connect.as_bytes())))
            .await;
        assert_eq!(peer.receive().await, (3, text(why)), "{connect}");
    }

    // The peer is told of a name once, however many agents use it, and of its end with the last.
    let second = agent(&west, address, Dialect::Native).await;
    sessions(&west, 2).await;
    drop(first);
    sessions(&west, 1).await;
    peer.send(3, Body::Connect(Bytes::from_static(b"tcp/127.0.0.1:9")))
        .await;
    assert_eq!(peer.receive().await, (3, text("malformed address")));
    drop(second);
    assert_eq!(peer.receive().await, (0, Body::RemoveClient(session)));
}

/// Waits until the agent "web" has so many sessions.
async fn sessions(server: &Server, count: usize) {
    let line = format!("watertight_agent_sessions{{agent=\"web\"}} {count}\n");
    until(&line, || server.counters().text().unwrap().contains(&line)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_peer_is_never_passed_on_to_another_peer() {
    let (west, east) = west(|_| {}).await;
    let mut asks = take(&east).await;
    let mut has = dial_as(&west, "east", "shared").await.unwrap();
    has.send(0, add("web/1")).await;
    until("the announcement", || west.has_agent("web")).await;
    let connect = Bytes::from_static(b"web::tcp/127.0.0.1:9");
    asks.send(2, Body::Connect(connect)).await;
    assert_eq!(asks.receive().await, (2, text("tunnel disconnect")));
    // The original announces its peers, too: these are no agents.
    has.send(0, add("west/1")).await;
    has.send(0, add("east/1")).await;
    // The announcements of a peer are not passed on: the dialing side gets none.
    asks.send(99, data(b"?")).await;
    assert_eq!(asks.receive().await.0, 99);
    has.send(99, data(b"?")).await;
    assert_eq!(has.receive().await.0, 99);
    assert!(!west.has_agent("west") && !west.has_agent("east"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_peers_clients_only_so_many_are_remembered() {
    let (west, _east) = west(|config| {
        let mut peers = peers("west", &[("east", "127.0.0.1:9".parse().unwrap())]);
        peers.clients_max = 2;
        config.peers = Some(Arc::new(peers));
    })
    .await;
    let mut peer = dial_as(&west, "east", "shared").await.unwrap();
    for client in ["a/1", "b/1", "web/1"] {
        peer.send(0, add(client)).await;
    }
    until("the announcements", || west.has_agent("b")).await;
    peer.send(99, data(b"?")).await;
    assert_eq!(peer.receive().await.0, 99);
    assert!(west.has_agent("a") && !west.has_agent("web"));
}

/// A peer that reads nothing held up the registration of everyone, and the end of the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_wedged_peer_holds_nobody_up() {
    let target = TcpListener::bind(loopback()).await.unwrap();
    let address = target.local_addr().unwrap();
    let (west, east) = west(|config| config.forwards = server_config(address).forwards).await;
    let peer = take(&east).await;
    until("the link", || count(&west, "peer_ws_connected") == 1).await;
    for _ in 0..200 {
        let agent = within(PROMPT, "an agent", agent(&west, address, Dialect::Native)).await;
        within(PROMPT, "its end", agent.drain(Duration::ZERO)).await;
    }
    let _agent = agent(&west, address, Dialect::Native).await;
    // Until it is registered, visitors find no session or the previous one.
    within(PROMPT, "the dial", async {
        loop {
            let _visitor = connect(west.forwards()[0]).await;
            let dialed = tokio::time::timeout(Duration::from_millis(100), target.accept());
            if dialed.await.is_ok() {
                return;
            }
        }
    })
    .await;
    within(LONG, "the drain", west.drain(Duration::ZERO)).await;
    drop(peer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_comes_again_replaces_its_older_session() {
    let (west, _east) = west(|_| {}).await;
    let mut older = dial_as(&west, "east", "shared").await.unwrap();
    older.send(0, add("web/1")).await;
    until("the announcement", || west.has_agent("web")).await;
    let mut newer = dial_as(&west, "east", "shared").await.unwrap();
    until("the replacement", || !west.has_agent("web")).await;
    newer.send(0, add("web/2")).await;
    until("the announcement", || west.has_agent("web")).await;
    let _visitor = connect(west.forwards()[0]).await.unwrap();
    assert!(matches!(newer.receive().await, (2, Body::Connect(_))));
    let text = west.counters().text().unwrap();
    assert_eq!(left(&text, "websocket_session"), 1, "{text}");
    drop(older);
}
