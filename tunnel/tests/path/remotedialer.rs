//! Remotedialer's dialect: a scripted peer in the place of a Go program, at either end. Tests named after a leak (`l1` to `l30`)
//! show that what is known to leak in such tunnels does not here.

mod agent;
mod peers;
mod server;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tunnel::dialect::Dialect;
use tunnel::dialect::remotedialer::{Body, Message, decode, encode};
use tunnel::server::handshake::Remotedialer;

use crate::rig::{LONG, Rig, pattern, within};

/// What a Go program would be.
struct Peer {
    websocket: WebSocketStream<TcpStream>,
    sent: i64,
    pings: usize,
}

impl Peer {
    const fn new(websocket: WebSocketStream<TcpStream>) -> Self {
        Self {
            websocket,
            sent: i64::MAX - 3,
            pings: 0,
        }
    }

    async fn send(&mut self, connection: i64, body: Body) {
        self.try_send(connection, body).await.unwrap();
    }

    async fn try_send(
        &mut self,
        connection: i64,
        body: Body,
    ) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        let mut bytes = BytesMut::new();
        self.sent = self.sent.wrapping_add(1);
        encode(self.sent, &Message { connection, body }, &mut bytes);
        let message = WsMessage::Binary(bytes.freeze());
        self.websocket.send(message).await
    }

    async fn receive(&mut self) -> (i64, Body) {
        loop {
            let message = within(LONG, "a message", self.websocket.next());
            match message.await.unwrap().unwrap() {
                WsMessage::Binary(bytes) => {
                    let message = decode(bytes).unwrap();
                    return (message.connection, message.body);
                }
                WsMessage::Ping(data) => {
                    assert!(data.is_empty());
                    self.pings += 1;
                }
                WsMessage::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Takes messages until one is not data, and returns it and the bytes before it.
    async fn receive_past_data(&mut self) -> (usize, (i64, Body)) {
        let mut bytes = 0;
        loop {
            match self.receive().await {
                (_, Body::Data(data)) => bytes += data.len(),
                other => return (bytes, other),
            }
        }
    }
}

fn text(text: &'static str) -> Body {
    Body::Error(Bytes::from_static(text.as_bytes()))
}

fn data(data: &'static [u8]) -> Body {
    Body::Data(Bytes::from_static(data))
}

/// Both of our own ends in this dialect.
async fn rig() -> Rig {
    Rig::start_with(
        |server| server.remotedialer = Some(Remotedialer::default()),
        |agent| agent.dialect = Dialect::Remotedialer,
    )
    .await
}

/// L6: bulk in both directions with a reader that is slower than its writer.
#[tokio::test(flavor = "multi_thread")]
async fn l6_an_echo_larger_than_every_buffer_completes() {
    let rig = rig().await;
    let (mut visitor, mut target) = rig.pair().await;
    let echo = tokio::spawn(async move {
        let (mut read, mut write) = target.split();
        tokio::io::copy(&mut read, &mut write).await
    });
    let sent = pattern(24 * 1024 * 1024);
    let mut received = vec![0; sent.len()];
    let (mut read, mut write) = visitor.split();
    within(LONG, "the echo", async {
        let reads = async {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            read.read_exact(&mut received).await.unwrap();
        };
        let (written, ()) = tokio::join!(write.write_all(&sent), reads);
        written.unwrap();
    })
    .await;
    assert!(received == sent);
    drop(visitor);
    within(LONG, "the end", echo).await.unwrap().unwrap();
    rig.at_rest().await;
}
