//! UDP forwards.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::UdpSocket;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tunnel::io::socket::{DatagramSocket, NOBODY, Role};
use tunnel::policy::Policy;
use tunnel::server::Server;
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::target::Target;
use tunnel::wire::frame::Frame;
use tunnel::wire::native::{Decoder, encode};
use tunnel::wire::{Dialect, datagram};
use tunnel::{agent, server};

use crate::rig::{LONG, PROMPT, Rig, loopback, pattern, server_config, until, within};
use crate::world::{connect, of_the_world};

fn to(target: SocketAddr) -> Target {
    format!("udp/{target}").parse().unwrap()
}

async fn rig(
    target: SocketAddr,
    change_server: impl FnOnce(&mut server::Config),
    change_agent: impl FnOnce(&mut agent::Config),
) -> Rig {
    Rig::start_with(
        |server| {
            server.forwards[0].target = to(target);
            change_server(server);
        },
        |agent| {
            agent.policy = Policy::new(vec!["udp:127.0.0.1:*".parse().unwrap()]);
            change_agent(agent);
        },
    )
    .await
}

async fn socket() -> UdpSocket {
    of_the_world(UdpSocket::bind(loopback()).await.unwrap())
}

async fn visitor(rig: &Rig) -> UdpSocket {
    let visitor = socket().await;
    visitor.connect(rig.server.forwards()[0]).await.unwrap();
    visitor
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let received = within(LONG, "a datagram", socket.recv_from(&mut buffer)).await;
    let (length, from) = received.unwrap();
    buffer.truncate(length);
    (buffer, from)
}

fn dropped(rig: &Rig, reason: &str) -> u64 {
    let text = rig.server.counters().text().unwrap();
    let name = format!("watertight_datagrams_dropped_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_visitor_has_a_flow_and_each_datagram_its_bounds() {
    let target = socket().await;
    let rig = rig(target.local_addr().unwrap(), |_| {}, |_| {}).await;
    let mut sources = Vec::new();
    for mark in 0..3 {
        let visitor = visitor(&rig).await;
        for length in [1400, 0, 1, 60_000, 20] {
            let mut sent = pattern(length);
            sent.push(mark);
            visitor.send(&sent).await.unwrap();
            let (received, from) = receive(&target).await;
            assert!(received == sent, "{length}");
            sources.push(from);
            sent.reverse();
            target.send_to(&sent, from).await.unwrap();
            assert!(receive(&visitor).await.0 == sent, "{length}");
            // An empty one is a datagram, too.
            target.send_to(&[], from).await.unwrap();
            assert!(receive(&visitor).await.0.is_empty());
        }
        // A stranger that knows the agent's socket is ignored.
        let stranger = socket().await;
        let source = *sources.last().unwrap();
        stranger.send_to(b"stranger", source).await.unwrap();
        target.send_to(b"target", source).await.unwrap();
        assert_eq!(receive(&visitor).await.0, b"target");
    }
    sources.dedup();
    assert_eq!(sources.len(), 3);
    for reason in ["queue", "flows", "stream", "socket"] {
        assert_eq!(dropped(&rig, reason), 0, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_flow_ends_and_the_next_datagram_begins_another() {
    let target = socket().await;
    let idle = |server: &mut server::Config| server.datagrams.idle = Duration::from_millis(100);
    let rig = rig(target.local_addr().unwrap(), idle, |_| {}).await;
    let visitor = visitor(&rig).await;
    let mut sources = Vec::new();
    for _ in 0..2 {
        visitor.send(b"x").await.unwrap();
        let (_, from) = receive(&target).await;
        // The agent's socket is gone when its address can be had again.
        assert!(std::net::UdpSocket::bind(from).is_err());
        until("the end of the socket", || {
            std::net::UdpSocket::bind(from).is_ok()
        })
        .await;
        rig.at_rest().await;
        sources.push(from);
    }
    let text = rig.server.counters().text().unwrap();
    assert_eq!(crate::rig::sum(&text, "remove_connections"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_outlives_a_target_that_is_away() {
    let target = socket().await;
    let address = target.local_addr().unwrap();
    let rig = rig(address, |_| {}, |_| {}).await;
    let visitor = visitor(&rig).await;
    visitor.send(b"first").await.unwrap();
    let (_, from) = receive(&target).await;
    drop(target);
    for _ in 0..3 {
        visitor.send(b"lost").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let target = of_the_world(UdpSocket::bind(address).await.unwrap());
    visitor.send(b"second").await.unwrap();
    assert_eq!(receive(&target).await, (b"second".to_vec(), from));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_allow_is_asked_for_once_a_while() {
    let target = socket().await;
    let address = target.local_addr().unwrap();
    let tcp_only = |agent: &mut agent::Config| {
        agent.policy = Policy::new(vec!["127.0.0.1:*".parse().unwrap()]);
    };
    let rig = rig(address, |_| {}, tcp_only).await;
    let visitor = visitor(&rig).await;
    for _ in 0..20 {
        visitor.send(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until("the drops", || dropped(&rig, "stream") >= 10).await;
    let text = rig.server.counters().text().unwrap();
    let denied = "watertight_open_failures_total{reason=\"denied\"} 1\n";
    assert!(text.contains(denied), "{text}");
    assert!(target.try_recv(&mut [0]).is_err());
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remotedialer_s_dialect_has_no_datagrams() {
    let target = socket().await;
    let rig = rig(
        target.local_addr().unwrap(),
        |server| server.remotedialer = Some(Remotedialer::default()),
        |agent| agent.dialect = Dialect::Remotedialer,
    )
    .await;
    visitor(&rig).await.send(b"x").await.unwrap();
    until("the drop", || dropped(&rig, "stream") == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_bounded_and_end_with_a_drain() {
    let target = socket().await;
    let two = |server: &mut server::Config| server.datagrams.flows_max = 2;
    let rig = rig(target.local_addr().unwrap(), two, |_| {}).await;
    let visitors = [
        visitor(&rig).await,
        visitor(&rig).await,
        visitor(&rig).await,
    ];
    let mut sources = Vec::new();
    for visitor in visitors.iter().take(2) {
        visitor.send(b"x").await.unwrap();
        sources.push(receive(&target).await.1);
    }
    visitors[2].send(b"x").await.unwrap();
    until("the drop", || dropped(&rig, "flows") == 1).await;
    // Those that are here go on.
    visitors[0].send(b"y").await.unwrap();
    assert_eq!(receive(&target).await, (b"y".to_vec(), sources[0]));
    let forward = rig.server.forwards()[0];
    within(PROMPT, "the drain", rig.server.drain(LONG)).await;
    assert!(std::net::UdpSocket::bind(forward).is_ok());
    for source in sources {
        until("the end of the socket", || {
            std::net::UdpSocket::bind(source).is_ok()
        })
        .await;
    }
}

/// The agent does not answer: what waits is bounded, and the rest is counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_drops_what_comes_and_keeps_what_it_has() {
    let target = loopback();
    let mut config = server_config(SocketAddr::new(target.ip(), 9));
    config.forwards[0].target = "udp/127.0.0.1:9".parse().unwrap();
    config.datagrams.queue = 2 * (1000 + tunnel::relay::datagrams::DATAGRAM_COST);
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
    let link = connect(server.front()).await.unwrap();
    let (mut link, _) = tokio_tungstenite::client_async(request, link)
        .await
        .unwrap();
    until("the registration", || server.has_agent("web")).await;
    let visitor = socket().await;
    visitor.connect(server.forwards()[0]).await.unwrap();
    for mark in 0..10 {
        visitor.send(&[mark; 1000]).await.unwrap();
    }
    until("the drops", || {
        let text = server.counters().text().unwrap();
        text.contains("watertight_datagrams_dropped_total{reason=\"queue\"} 8\n")
    })
    .await;
    let mut stream = None;
    let mut decoder = datagram::Decoder::default();
    let mut received = Vec::new();
    while received.len() < 2 {
        let message = within(LONG, "a message", link.next()).await;
        let Message::Binary(message) = message.unwrap().unwrap() else {
            continue;
        };
        for frame in Decoder::new(message) {
            match frame.unwrap() {
                Frame::Open {
                    stream: id, target, ..
                } => {
                    assert_eq!(target, Bytes::from_static(b"udp/127.0.0.1:9"));
                    stream = Some(id);
                    let window = 100_000;
                    let mut accept = bytes::BytesMut::new();
                    encode(&Frame::Accept { stream: id, window }, &mut accept);
                    link.send(Message::Binary(accept.freeze())).await.unwrap();
                }
                Frame::Data { stream: id, data } => {
                    assert_eq!(Some(id), stream);
                    decoder.push(&data);
                    received.extend(decoder.by_ref());
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(received, [vec![0; 1000], vec![1; 1000]]);
}

/// A source that never pauses is left alone after some datagrams, so that the flow's other
/// direction has its turn.
#[tokio::test]
async fn a_flood_does_not_hold_its_task() {
    const SENT: usize = 200;
    let source = socket().await;
    let to = source.local_addr().unwrap();
    let dialed = DatagramSocket::dial(to, Role::Stream, NOBODY, "target").await;
    let dialed = dialed.unwrap();
    dialed.send(b"begin").unwrap();
    let (_, from) = receive(&source).await;
    for _ in 0..SENT {
        source.send_to(b"x", from).await.unwrap();
    }
    let mut received = 0;
    let mut buffer = bytes::BytesMut::new();
    let mut flood = std::pin::pin!(async {
        while received < SENT {
            dialed.receive(&mut buffer).await.unwrap();
            received += 1;
        }
    });
    let mut turns = 0;
    let whole = std::future::poll_fn(|cx| {
        turns += 1;
        flood.as_mut().poll(cx)
    });
    within(PROMPT, "the flood", whole).await;
    assert!(turns > 1);
}
