//! Our agent, and a peer in the place of a Go server.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::agent;
use tunnel::agent::Agent;
use tunnel::mux::remotedialer;
use tunnel::policy::Policy;
use tunnel::wire::Dialect;
use tunnel::wire::remotedialer::Body;

use super::{Peer, data, text};
use crate::rig::{LONG, PROMPT, drain, loopback, reset, token, until, within};
use crate::world::{BlackHole, TcpListener};

struct Script {
    agent: Agent,
    peer: Peer,
    target: TcpListener,
}

impl Script {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut remotedialer::Config)) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let target = TcpListener::bind(loopback()).await.unwrap();
        let url = format!("ws://{}/connect", listener.local_addr().unwrap());
        let policy = Policy::new(vec!["127.0.0.0/8:*".parse().unwrap()]);
        let name = "web".to_owned();
        let mut config = agent::Config::new(url.parse().unwrap(), name, policy, token());
        config.dialect = Dialect::Remotedialer;
        change(&mut config.remotedialer_mux);
        let agent = Agent::start(config, None);
        let (socket, _) = within(LONG, "the dial", listener.accept()).await.unwrap();
        let websocket = tokio_tungstenite::accept_async(socket).await.unwrap();
        within(LONG, "connecting", agent.connected()).await;
        Self {
            agent,
            peer: Peer::new(websocket),
            target,
        }
    }

    async fn connect_to(&mut self, connection: i64, address: SocketAddr) {
        let address = Bytes::from(format!("tcp/{address}"));
        self.peer.send(connection, Body::Connect(address)).await;
    }

    async fn connect(&mut self, connection: i64) -> TcpStream {
        let address = self.target.local_addr().unwrap();
        self.connect_to(connection, address).await;
        let dial = within(LONG, "the dial", self.target.accept());
        dial.await.unwrap().0
    }

    async fn at_rest(&self) {
        within(PROMPT, "coming to rest", self.agent.idle()).await;
    }

    /// Sends to a target that does not read until the agent asks for a pause.
    async fn fill(&mut self, connection: i64) {
        let piece = Body::Data(Bytes::from(vec![7; 64 * 1024]));
        while tokio::time::timeout(Duration::from_millis(1), self.peer.receive())
            .await
            .map_or(true, |message| message != (connection, Body::Pause))
        {
            self.peer.send(connection, piece.clone()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opener_may_send_at_once_and_the_targets_end_is_an_eof() {
    let mut script = Script::start().await;
    let address = script.target.local_addr().unwrap();
    script.connect_to(2, address).await;
    script.peer.send(2, data(b"ping")).await;
    let (mut target, _) = script.target.accept().await.unwrap();
    let mut bytes = [0; 4];
    within(PROMPT, "the bytes", target.read_exact(&mut bytes))
        .await
        .unwrap();
    assert_eq!(&bytes, b"ping");
    target.write_all(b"pong").await.unwrap();
    target.shutdown().await.unwrap();
    assert_eq!(script.peer.receive().await, (2, data(b"pong")));
    assert_eq!(script.peer.receive().await, (2, text("EOF")));
    // Both directions are over.
    assert_eq!(
        within(PROMPT, "the end", drain(&mut target)).await.unwrap(),
        0
    );
    script.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eof_comes_to_the_target_behind_the_bytes_before_it() {
    let mut script = Script::start().await;
    let mut target = script.connect(2).await;
    script
        .peer
        .send(2, Body::Data(vec![1; 1_000_000].into()))
        .await;
    script.peer.send(2, text("EOF")).await;
    let end = within(PROMPT, "the end", drain(&mut target)).await;
    assert_eq!(end.unwrap(), 1_000_000);
    drop(target);
    script.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_told_for_that_connection_alone() {
    let mut script = Script::start().await;
    let mut target = script.connect(2).await;
    let closed = {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        listener.local_addr().unwrap()
    };
    for (address, why) in [
        ("tcp/192.0.2.1:1".to_owned(), "connect not allowed"),
        ("web::tcp/127.0.0.1:1".to_owned(), "malformed address"),
        (format!("tcp/{closed}"), "connection refused"),
        ("x".repeat(300), "malformed address"),
    ] {
        script.peer.send(3, Body::Connect(address.into())).await;
        assert_eq!(script.peer.receive().await, (3, text(why)));
    }
    script.peer.send(2, data(b"ping")).await;
    within(PROMPT, "the bytes", target.read_exact(&mut [0; 4]))
        .await
        .unwrap();
    reset(target);
    assert_eq!(
        script.peer.receive().await,
        (2, text("connection reset by peer"))
    );
    script.at_rest().await;
}

/// The write to a target that does not read outlived the stream, and the session.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_does_not_read_is_released_when_its_opener_leaves() {
    let grace = Duration::from_millis(300);
    for last in ["EOF", "operation was canceled"] {
        let mut script = Script::start_with(|config| config.delivery_grace = grace).await;
        let mut target = script.connect(2).await;
        script.fill(2).await;
        script.peer.send(2, text(last)).await;
        script.at_rest().await;
        assert!(
            within(PROMPT, "the reset", drain(&mut target))
                .await
                .is_err()
        );
    }
    let mut script = Script::start().await;
    let mut target = script.connect(2).await;
    script.fill(2).await;
    let Script { agent, peer, .. } = script;
    reset(peer.websocket.into_inner());
    within(PROMPT, "the loss", agent.disconnected()).await;
    assert!(
        within(PROMPT, "the reset", drain(&mut target))
            .await
            .is_err()
    );
}

/// A writer that was paused was never woken when its connection ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_stream_ends_when_its_opener_leaves() {
    let mut script = Script::start().await;
    let mut target = script.connect(2).await;
    script.peer.send(2, Body::Pause).await;
    let endless = tokio::spawn(async move {
        let data = vec![1; 64 * 1024];
        while target.write_all(&data).await.is_ok() {}
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    script.peer.send(2, text("EOF")).await;
    within(PROMPT, "the end of the target", endless)
        .await
        .unwrap();
    script.at_rest().await;
}

/// The dial went on for up to a minute after its opener had left.
#[tokio::test(flavor = "multi_thread")]
async fn a_dial_is_called_off_when_its_opener_leaves() {
    let hole = BlackHole::open().await;
    let mut script = Script::start().await;
    for connection in 2..5 {
        script.connect_to(connection, hole.address).await;
    }
    script.peer.send(3, data(b"GET / HTTP/1.1\r\n\r\n")).await;
    until("the dials", || hole.dials() == 3).await;
    script.peer.send(2, text("EOF")).await;
    script.peer.send(3, text("EOF")).await;
    script.peer.send(4, text("operation was canceled")).await;
    until("the end of the dials", || hole.dials() == 0).await;
    script.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_pings_and_lists_its_connections() {
    let mut script = Script::start_with(|config| {
        config.ping_interval = Duration::from_millis(50);
        config.sync_interval = Duration::from_millis(200);
    })
    .await;
    let _target = script.connect(7).await;
    let list = Body::SyncConnections(vec![7]);
    while script.peer.receive().await != (0, list.clone()) {}
    while script.peer.receive().await != (0, list.clone()) {}
    while script.peer.pings < 4 {
        script.peer.receive().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_loses_the_session_and_its_targets() {
    let mut script = Script::start_with(|config| config.silence = Duration::from_millis(300)).await;
    let mut target = script.connect(2).await;
    within(PROMPT, "giving up", script.agent.disconnected()).await;
    assert!(
        within(PROMPT, "the reset", drain(&mut target))
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_agent_waits_for_its_streams_and_refuses_new_ones() {
    let mut script = Script::start().await;
    let mut target = script.connect(2).await;
    let Script {
        agent, mut peer, ..
    } = script;
    let drained = tokio::spawn(agent.drain(LONG));
    let address = Bytes::from_static(b"tcp/127.0.0.1:9");
    let refused = loop {
        peer.send(3, Body::Connect(address.clone())).await;
        match peer.receive().await {
            (3, Body::Error(text)) if text == "connection refused" => {}
            other => break other,
        }
    };
    assert_eq!(refused, (3, text("the agent is draining")));
    assert!(!drained.is_finished());
    target.write_all(b"goodbye").await.unwrap();
    drop(target);
    assert_eq!(peer.receive().await, (2, data(b"goodbye")));
    assert_eq!(peer.receive().await, (2, text("EOF")));
    within(PROMPT, "the drain", drained).await.unwrap();
}
