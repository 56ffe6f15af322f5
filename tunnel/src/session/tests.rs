use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tunnel_proto::mux::native;
use tunnel_proto::wire::frame::{Frame, Side};
use tunnel_proto::wire::native::encode;

use crate::io::clock::Clock;
use crate::io::socket::{NOBODY, Role, Socket};
use crate::metrics::SessionMetrics;
use crate::session::{Core, Session};

/// A stream that waits to be accepted, or is open, holds its target and not the message in which
/// the target came.
#[tokio::test]
async fn an_opening_stream_keeps_its_target_s_bytes_only() {
    #[expect(clippy::disallowed_methods, reason = "the other end of the link")]
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = Socket::dial(address, Role::Link, NOBODY, "test");
    let socket = socket.await.unwrap();
    let clock = Clock::start();
    let config = native::Config::default();
    let core = Core::native(Side::Agent, config, clock.now());
    let session = Session::new(1, core, clock, socket.mark(), SessionMetrics::default());

    let mut server = Core::native(Side::Server, config, clock.now());
    let target = Bytes::from_static(b"tcp/127.0.0.1:80");
    server.open(clock.now(), target.clone()).unwrap();
    let mut message = BytesMut::new();
    server.poll_message(1024, &mut message);
    while message.len() < 60 * 1024 {
        encode(&Frame::Ping { nonce: 1 }, &mut message);
    }
    let message = message.freeze();
    session.recv_message(message.clone()).unwrap();
    assert!(message.is_unique(), "it is held while the stream waits");
    let incoming = session.accept().now_or_never().flatten().unwrap();
    assert_eq!(incoming.target(), target);
    let _stream = incoming.accept().unwrap();
    assert!(message.is_unique(), "it is held by the stream");
}
