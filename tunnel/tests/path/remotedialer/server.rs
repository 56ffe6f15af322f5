//! Our server, and a peer that has shaken hands as the Go client "web" would.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tunnel::mux::remotedialer;
use tunnel::server::Server;
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::wire::remotedialer::Body;

use super::{Peer, data, text};
use crate::rig::{
    LONG, PROMPT, drain, fill, loopback, reset, server_config, sum, until, with_http, within,
};
use crate::world::connect as connect_visitor;

struct Script {
    server: Server,
    peer: Peer,
}

async fn connect(server: &Server, secret: &str) -> Result<Peer, WsError> {
    let mut request = format!("ws://{}/connect", server.front()).into_client_request()?;
    for (name, value) in [
        ("x-tunnel-id", "web"),
        ("authorization", &format!("Bearer {secret}")),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let socket = connect_visitor(server.front()).await.unwrap();
    let (websocket, _) = tokio_tungstenite::client_async(request, socket).await?;
    Ok(Peer::new(websocket))
}

async fn server(accepts: bool, change: impl FnOnce(&mut remotedialer::Config)) -> Server {
    let mut config = server_config("127.0.0.1:9".parse().unwrap());
    config.remotedialer = accepts.then(Remotedialer::default);
    with_http(&mut config);
    change(&mut config.remotedialer_mux);
    assert_eq!(config.listen, loopback());
    Server::start(config).await.unwrap()
}

impl Script {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut remotedialer::Config)) -> Self {
        let server = server(true, change).await;
        let peer = connect(&server, "secret").await.unwrap();
        until("the registration", || server.has_agent("web")).await;
        Self { server, peer }
    }

    async fn visitor(&mut self) -> (TcpStream, i64) {
        let visitor = connect_visitor(self.server.forwards()[0]).await.unwrap();
        match self.peer.receive().await {
            (connection, Body::Connect(address)) => {
                assert_eq!(address, "tcp/127.0.0.1:9");
                (visitor, connection)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Everything but the link is gone, and what was counted in was counted out.
    async fn at_rest(&self) {
        until("coming to rest", || self.server.tasks() <= 2).await;
        let counters = self.server.counters().text().unwrap();
        let count = |name| sum(&counters, name);
        assert_eq!(count("add_connections"), count("remove_connections"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn such_a_client_needs_the_flag_and_the_token() {
    for (accepts, secret, expected) in [(false, "secret", 400), (true, "wrong", 401)] {
        let server = server(accepts, |_| {}).await;
        match connect(&server, secret).await {
            Err(WsError::Http(response)) => assert_eq!(response.status().as_u16(), expected),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("taken"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_and_an_eof_comes_behind_them() {
    let mut script = Script::start().await;
    let (mut visitor, connection) = script.visitor().await;
    assert_eq!(connection, 2);
    visitor.write_all(b"ping").await.unwrap();
    assert_eq!(script.peer.receive().await, (2, data(b"ping")));
    script.peer.send(2, data(b"pong")).await;
    script.peer.send(2, text("EOF")).await;
    let end = within(PROMPT, "the end", drain(&mut visitor)).await;
    assert_eq!(end.unwrap(), 4);
    script.at_rest().await;
    let (mut visitor, connection) = script.visitor().await;
    assert_eq!(connection, 3);
    visitor.write_all(b"last").await.unwrap();
    visitor.shutdown().await.unwrap();
    assert_eq!(script.peer.receive().await, (3, data(b"last")));
    assert_eq!(script.peer.receive().await, (3, text("EOF")));
    let end = within(PROMPT, "the end", drain(&mut visitor)).await;
    assert_eq!(end.unwrap(), 0);
    script.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_resets_the_visitor_and_tells_the_front_why() {
    let mut script = Script::start().await;
    let (mut visitor, connection) = script.visitor().await;
    let refused = "dial tcp 127.0.0.1:9: connect: connection refused";
    script.peer.send(connection, text(refused)).await;
    let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
    assert!(end.is_err());
    let mut visitor = connect_visitor(script.server.front()).await.unwrap();
    let request =
        b"GET /client/web/http/127.0.0.1:9/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    visitor.write_all(request).await.unwrap();
    let (connection, _) = script.peer.receive().await;
    script.peer.send(connection, text(refused)).await;
    let mut response = String::new();
    let read = visitor.read_to_string(&mut response);
    within(PROMPT, "the response", read).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 502"), "{response}");
    assert!(response.contains("refused the connection"), "{response}");
    script.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_aborts_is_told_as_an_error() {
    let mut script = Script::start().await;
    let (visitor, connection) = script.visitor().await;
    reset(visitor);
    let told = script.peer.receive().await;
    assert_eq!(told, (connection, text("connection reset by peer")));
    script.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_honoured_until_the_resume() {
    let mut script = Script::start().await;
    let (mut visitor, connection) = script.visitor().await;
    script.peer.send(connection, Body::Pause).await;
    // A round trip, so that the pause has been read.
    script.peer.send(99, data(b"?")).await;
    assert_eq!(script.peer.receive().await.0, 99);
    let written = fill(&mut visitor).await;
    let early = tokio::time::timeout(Duration::from_millis(100), script.peer.receive()).await;
    assert!(early.is_err(), "{early:?}");
    script.peer.send(connection, Body::Resume).await;
    visitor.shutdown().await.unwrap();
    let (received, end) = script.peer.receive_past_data().await;
    assert_eq!((received, end), (written, (connection, text("EOF"))));
    script.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_ignores_the_pause_loses_that_connection_alone() {
    let mut script = Script::start_with(|config| {
        config.pause_above = 64 * 1024;
        config.stream_cap = 1024 * 1024;
    })
    .await;
    let (mut visitor, connection) = script.visitor().await;
    let piece = Body::Data(Bytes::from(vec![7; 64 * 1024]));
    // What the kernel holds for a visitor that does not read comes on top of the cap.
    for _ in 0..400 {
        script.peer.send(connection, piece.clone()).await;
    }
    assert_eq!(script.peer.receive().await, (connection, Body::Pause));
    let overrun = text("buffer overrun: the sender did not pause");
    loop {
        match script.peer.receive().await {
            (_, Body::Pause | Body::Resume) => {}
            other => {
                assert_eq!(other, (connection, overrun));
                break;
            }
        }
    }
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    // The rest was late data; once the stream is forgotten, the answer is "not found". The session
    // goes on.
    let mut visitor = connect_visitor(script.server.forwards()[0]).await.unwrap();
    let connection = loop {
        if let (connection, Body::Connect(_)) = script.peer.receive().await {
            break connection;
        }
    };
    script.peer.send(connection, data(b"fine")).await;
    within(PROMPT, "bytes", visitor.read_exact(&mut [0; 4]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_an_unknown_connection_is_answered() {
    let mut script = Script::start().await;
    script.peer.send(99, data(b"?")).await;
    let (connection, body) = script.peer.receive().await;
    let Body::Error(text) = body else {
        panic!("{body:?}")
    };
    let text = std::str::from_utf8(&text).unwrap();
    assert_eq!(connection, 99);
    assert!(
        text.starts_with("connection not found web/") && text.ends_with("/99"),
        "{text}"
    );
}

/// The list was made before its agent knew of the connection, and the end of an orphan was told to
/// nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_ends_only_what_its_agent_knew_of_and_tells_so() {
    let mut script = Script::start().await;
    let (mut visitor, connection) = script.visitor().await;
    // This peer does not read, so it has proved nothing.
    for _ in 0..5 {
        script.peer.send(0, Body::SyncConnections(Vec::new())).await;
    }
    visitor.write_all(b"ping").await.unwrap();
    // Reading answers the server's ping.
    assert_eq!(script.peer.receive().await, (connection, data(b"ping")));
    script.peer.send(connection, data(b"pong")).await;
    within(PROMPT, "the bytes", visitor.read_exact(&mut [0; 4]))
        .await
        .unwrap();
    // A round trip on the link: the lists have been read, and the ping that they led to came before
    // the answer.
    script.peer.send(98, data(b"?")).await;
    assert_eq!(script.peer.receive().await.0, 98);
    assert_eq!(script.peer.pings, 1);
    let list = Body::SyncConnections(vec![connection, 77]);
    script.peer.send(0, list).await;
    assert_eq!(script.peer.receive().await.0, 77);
    for _ in 0..2 {
        script.peer.send(0, Body::SyncConnections(Vec::new())).await;
    }
    let told = script.peer.receive().await;
    assert_eq!(told, (connection, text("operation was canceled")));
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    script.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_ends_its_connections_at_both_ends() {
    let mut script = Script::start().await;
    let (mut visitor, connection) = script.visitor().await;
    let Script { server, mut peer } = script;
    let drained = tokio::spawn(server.drain(Duration::ZERO));
    assert_eq!(
        peer.receive().await,
        (connection, text("tunnel disconnect"))
    );
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    within(LONG, "the drain", drained).await.unwrap();

    let mut script = Script::start().await;
    let (mut visitor, _) = script.visitor().await;
    let Script { server, peer } = script;
    reset(peer.websocket.into_inner());
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    until("the end of the session", || server.tasks() == 0).await;
}

/// The socket of a session that was given up for silence stayed open.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_loses_its_socket_with_its_session() {
    let mut script = Script::start_with(|config| config.silence = Duration::from_millis(300)).await;
    let (mut visitor, _) = script.visitor().await;
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    let Script { server, peer } = script;
    until("the end of the session", || server.tasks() == 0).await;
    let mut socket = peer.websocket.into_inner();
    // Whatever was said last, then the end.
    let _ = within(PROMPT, "the end", drain(&mut socket)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remotedialer_message_max_is_the_longest_message_that_is_taken() {
    let mut config = server_config("127.0.0.1:9".parse().unwrap());
    config.remotedialer = Some(Remotedialer::default());
    config.link.remotedialer_message_max = 64 * 1024;
    let server = Server::start(config).await.unwrap();
    let peer = connect(&server, "secret").await.unwrap();
    until("the registration", || server.has_agent("web")).await;
    let mut script = Script { server, peer };
    let (mut visitor, connection) = script.visitor().await;
    let most = Bytes::from(vec![7; 60 * 1024]);
    script.peer.send(connection, Body::Data(most.clone())).await;
    let mut read = vec![0; most.len()];
    let whole = within(PROMPT, "the bytes", visitor.read_exact(&mut read)).await;
    whole.unwrap();
    // The server may be gone before everything is sent.
    let more = Body::Data(vec![7; 70 * 1024].into());
    let _ = script.peer.try_send(connection, more).await;
    let reset = within(PROMPT, "the reset", drain(&mut visitor)).await;
    assert!(reset.is_err());
    until("the end of the session", || script.server.tasks() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_ends_the_link() {
    use futures_util::SinkExt as _;
    let mut script = Script::start().await;
    let (mut visitor, _) = script.visitor().await;
    let bytes = Bytes::from_static(&[0xff; 20]);
    let message = tokio_tungstenite::tungstenite::Message::Binary(bytes);
    script.peer.websocket.send(message).await.unwrap();
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    until("the end of the session", || script.server.tasks() == 0).await;
}
