//! Remotedialer's dialect: a scripted peer in the place of a Go program, at either end. Tests named
//! after a leak (`l1` to `l30`) show that what is known to leak in such tunnels does not here.

mod agent;
mod peers;
mod server;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::wire::Dialect;
use tunnel::wire::remotedialer::{Body, Message, decode, encode};

use crate::rig::{LONG, Rig, within};

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
pub(crate) async fn rig() -> Rig {
    Rig::start_with(
        |server| server.remotedialer = Some(Remotedialer::default()),
        |agent| agent.dialect = Dialect::Remotedialer,
    )
    .await
}
