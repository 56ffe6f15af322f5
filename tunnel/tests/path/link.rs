//! A scripted peer in the agent's place: what it may do, and what it may not.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tunnel::mux;
use tunnel::mux::Reason;
use tunnel::server::Server;
use tunnel::session::link;
use tunnel::wire::frame::{Frame, StreamId};
use tunnel::wire::native::{Decoder, encode};

use crate::rig::{LONG, PROMPT, drain, loopback, server_config, until, within};
use crate::world::{TcpListener, connect};

/// A server, and a peer that has shaken hands as the agent "web".
struct Script {
    server: Server,
    peer: WebSocketStream<TcpStream>,
    received: Vec<Frame>,
    /// Bytes of the longest message received.
    longest: usize,
}

impl Script {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut mux::native::Config)) -> Self {
        let target = TcpListener::bind(loopback()).await.unwrap();
        let mut config = server_config(target.local_addr().unwrap());
        change(&mut config.mux);
        let server = Server::start(config).await.unwrap();
        let mut request = format!("ws://{}/connect", server.front())
            .into_client_request()
            .unwrap();
        for (name, value) in [
            ("sec-websocket-protocol", "watertight.v1"),
            ("x-tunnel-id", "web"),
            ("authorization", "Bearer secret"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let socket = connect(server.front()).await.unwrap();
        let (peer, response) = tokio_tungstenite::client_async(request, socket)
            .await
            .unwrap();
        let session = response.headers()["x-tunnel-session"].to_str().unwrap();
        assert_ne!(session.parse::<u64>().unwrap(), 0);
        until("the registration", || server.has_agent("web")).await;
        Self {
            server,
            peer,
            received: Vec::new(),
            longest: 0,
        }
    }

    async fn send(&mut self, frames: &[Frame]) {
        let mut message = BytesMut::new();
        for frame in frames {
            encode(frame, &mut message);
        }
        self.peer
            .send(Message::Binary(message.freeze()))
            .await
            .unwrap();
    }

    async fn receive(&mut self) -> Frame {
        while self.received.is_empty() {
            match within(LONG, "a frame", self.peer.next())
                .await
                .unwrap()
                .unwrap()
            {
                Message::Binary(message) => {
                    assert!(message.len() <= link::Config::default().batch);
                    self.longest = self.longest.max(message.len());
                    self.received
                        .extend(Decoder::new(message).map(Result::unwrap));
                }
                other => panic!("{other:?}"),
            }
        }
        self.received.remove(0)
    }

    async fn visitor(&mut self) -> (TcpStream, StreamId) {
        let visitor = connect(self.server.forwards()[0]).await.unwrap();
        match self.receive().await {
            Frame::Open { stream, target, .. } => {
                assert!(target.starts_with(b"tcp/127.0.0.1:"));
                (visitor, stream)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn ends(mut self) {
        let end = async { while let Some(Ok(_)) = self.peer.next().await {} };
        within(PROMPT, "the end of the link", end).await;
        until("the end of the session", || self.server.tasks() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_stream_on_the_wire() {
    let mut script = Script::start().await;
    let (mut visitor, stream) = script.visitor().await;
    visitor.write_all(b"hello").await.unwrap();
    script.send(&[Frame::Accept { stream, window: 3 }]).await;
    let data = Bytes::from_static(b"hel");
    assert_eq!(script.receive().await, Frame::Data { stream, data });
    let answer = Bytes::from_static(b"answer");
    script
        .send(&[
            Frame::Window { stream, credit: 10 },
            Frame::Data {
                stream,
                data: answer,
            },
            Frame::Finish { stream },
        ])
        .await;
    let mut read = Vec::new();
    within(PROMPT, "the answer", visitor.read_to_end(&mut read))
        .await
        .unwrap();
    assert_eq!(read, b"answer");
    drop(visitor);
    let mut frames = vec![
        script.receive().await,
        script.receive().await,
        script.receive().await,
    ];
    frames.sort_by_key(|frame| matches!(frame, Frame::Delivered { .. }));
    let data = Bytes::from_static(b"lo");
    assert_eq!(
        frames,
        [
            Frame::Data { stream, data },
            Frame::Finish { stream },
            Frame::Delivered { stream }
        ]
    );
    script.send(&[Frame::Delivered { stream }]).await;
    until("the end of the stream", || script.server.tasks() == 2).await;
    // Late frames are dropped.
    script
        .send(&[Frame::Finish { stream }, Frame::Ping { nonce: 5 }])
        .await;
    assert_eq!(script.receive().await, Frame::Pong { nonce: 5 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_overruns_its_credit_loses_the_stream_only() {
    let mut script = Script::start().await;
    let (mut visitor, stream) = script.visitor().await;
    script.send(&[Frame::Accept { stream, window: 0 }]).await;
    let data = Bytes::from(vec![0; 200_000]);
    for _ in 0..60 {
        script
            .send(&[Frame::Data {
                stream,
                data: data.clone(),
            }])
            .await;
    }
    loop {
        match script.receive().await {
            Frame::Window { .. } => {}
            Frame::Reset { reason, .. } => break assert_eq!(reason, Reason::Overrun),
            other => panic!("{other:?}"),
        }
    }
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    script.send(&[Frame::Ping { nonce: 1 }]).await;
    assert_eq!(script.receive().await, Frame::Pong { nonce: 1 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_may_not_open_streams() {
    let mut script = Script::start().await;
    let (stream, window, target) = (
        StreamId::new(2).unwrap(),
        10,
        Bytes::from_static(b"tcp/127.0.0.1:1"),
    );
    script
        .send(&[Frame::Open {
            stream,
            window,
            target,
        }])
        .await;
    let reason = Reason::Denied;
    assert_eq!(script.receive().await, Frame::Reset { stream, reason });
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_frames_end_the_link_and_nothing_else() {
    for message in [vec![0], vec![3, 1, 200], vec![0xff; 50], vec![1, 1, 0, 0]] {
        let mut script = Script::start().await;
        let (mut visitor, _) = script.visitor().await;
        script
            .peer
            .send(Message::Binary(message.into()))
            .await
            .unwrap();
        assert!(
            within(PROMPT, "the reset", drain(&mut visitor))
                .await
                .is_err()
        );
        script.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_bound_ends_the_link() {
    let mut script = Script::start().await;
    // The server may be gone before everything is sent.
    let _ = script
        .peer
        .send(Message::Binary(vec![0; 300 * 1024].into()))
        .await;
    script.ends().await;
}

/// A visitor that sends as fast as it can fills whole messages, and none is longer than the bound.
#[tokio::test(flavor = "multi_thread")]
async fn batch_bounds_the_messages_of_a_busy_stream() {
    let mut script = Script::start().await;
    let (mut visitor, stream) = script.visitor().await;
    let window = u32::MAX;
    script.send(&[Frame::Accept { stream, window }]).await;
    let length = 4 * 1024 * 1024;
    let upload = async {
        visitor.write_all(&vec![7; length]).await.unwrap();
        visitor
    };
    let download = async {
        let mut received = 0;
        while received < length {
            match script.receive().await {
                Frame::Data { data, .. } => received += data.len(),
                other => panic!("{other:?}"),
            }
        }
    };
    let (visitor, ()) = tokio::join!(upload, download);
    assert!(script.longest > link::Config::default().batch / 2);
    drop(visitor);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_vanishes_in_the_middle_of_opens_leaves_nothing() {
    let mut script = Script::start().await;
    let (mut visitor, _) = script.visitor().await;
    let Script { server, peer, .. } = script;
    crate::rig::reset(peer.into_inner());
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    until("the end of the session", || server.tasks() == 0).await;
}

/// Not even what was waiting for the link, which is full.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_told_behind_a_full_link_and_is_the_last_of_its_stream() {
    let mut script = Script::start().await;
    let (mut visitor, stream) = script.visitor().await;
    let window = u32::MAX;
    script.send(&[Frame::Accept { stream, window }]).await;
    crate::rig::fill(&mut visitor).await;
    crate::rig::reset(visitor);
    until("the end of the stream", || script.server.tasks() == 2).await;
    let (mut visitor, other) = loop {
        match script.receive().await {
            Frame::Data { stream: of, .. } => assert_eq!(of, stream),
            Frame::Reset { stream: of, reason } => {
                assert_eq!((of, reason), (stream, Reason::Aborted));
                break script.visitor().await;
            }
            other => panic!("{other:?}"),
        }
    };
    let stream = other;
    script.send(&[Frame::Accept { stream, window }]).await;
    visitor.write_all(b"next").await.unwrap();
    let data = Bytes::from_static(b"next");
    assert_eq!(script.receive().await, Frame::Data { stream, data });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_agent_loses_its_socket_with_its_session() {
    let mut script = Script::start_with(|config| {
        config.ping_interval = Duration::from_millis(100);
        config.silence = Duration::from_millis(300);
    })
    .await;
    let (mut visitor, _) = script.visitor().await;
    let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
    assert!(end.is_err());
    until("the end of the session", || script.server.tasks() == 0).await;
    let mut socket = script.peer.into_inner();
    // Whatever was said last, then the end.
    let _ = within(PROMPT, "the end", drain(&mut socket)).await;
}

/// Half of a link is none, although what is written into it still goes.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_finishes_its_side_is_gone() {
    let mut script = Script::start().await;
    let (mut visitor, _) = script.visitor().await;
    script.peer.get_mut().shutdown().await.unwrap();
    let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
    assert!(end.is_err());
    script.ends().await;
}
