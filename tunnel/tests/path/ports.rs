//! Ports that come, go and stay while the server runs, and those that listen at a path.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UdpSocket, UnixStream};
use tunnel::policy::Policy;
use tunnel::server::config::HttpPort;
use tunnel::server::config::port::ProxyPort;
use tunnel::server::{Forward, Listen, Port, PortsError, Server};
use tunnel::target::Target;

use crate::rig::{
    LONG, PROMPT, Rig, broken, drain, loopback, pattern, refused, round_trip, until, within,
};
use crate::world::{TcpListener, connect, of_the_world};

fn forward(listen: impl Into<Listen>, target: SocketAddr) -> Port {
    Port::Forward(Forward {
        listen: listen.into(),
        agent: "web".to_owned(),
        target: Target::tcp(&target.to_string(), None).unwrap(),
    })
}

fn datagrams(listen: SocketAddr, target: SocketAddr) -> Port {
    format!("{listen}=web/udp/{target}")
        .parse::<Forward>()
        .unwrap()
        .into()
}

/// A rig without ports whose agent may dial everything here.
async fn rig() -> Rig {
    Rig::start_with(
        |server| server.forwards.clear(),
        |agent| {
            let rules = ["127.0.0.1:*", "udp:127.0.0.1:*"].map(|rule| rule.parse().unwrap());
            agent.policy = Policy::new(rules.to_vec());
        },
    )
    .await
}

/// The ports, where they listen for real.
fn fixed(server: &Server) -> Vec<Port> {
    let ports = server.ports().into_iter();
    ports
        .map(|(port, address)| match (*port).clone() {
            Port::Forward(forward) => Port::Forward(Forward {
                listen: address,
                ..forward
            }),
            Port::Socks5(proxy) => Port::Socks5(ProxyPort {
                listen: address,
                ..proxy
            }),
            Port::Connect(proxy) => Port::Connect(ProxyPort {
                listen: address,
                ..proxy
            }),
            Port::Http(http) => Port::from(HttpPort {
                listen: address,
                ..(*http).clone()
            }),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_gone_is_not_listened_on_and_its_streams_go_on() {
    let rig = rig().await;
    let target = rig.target.local_addr().unwrap();
    let set = |ports| rig.server.set_ports(ports);
    set(vec![
        forward(loopback(), target),
        forward(loopback(), target),
    ])
    .await
    .unwrap();
    let [first, second] = rig.server.forwards()[..] else {
        panic!("not two")
    };
    let mut pairs = Vec::new();
    for address in [first, second] {
        let visitor = connect(address).await.unwrap();
        let accepted = within(LONG, "the dial", rig.target.accept()).await;
        pairs.push((visitor, accepted.unwrap().0));
    }
    set(vec![forward(second, target)]).await.unwrap();
    assert_eq!(rig.server.forwards(), [second]);
    let error = connect(first).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    for (visitor, target) in &mut pairs {
        round_trip(visitor, target).await;
    }
    // The address is free, and in the order of the configuration again.
    set(vec![forward(first, target), forward(second, target)])
        .await
        .unwrap();
    assert_eq!(rig.server.forwards(), [first, second]);
    drop(pairs);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_stays_misses_no_visitor() {
    let rig = rig().await;
    let target = rig.target.local_addr().unwrap();
    rig.server
        .set_ports(vec![forward(loopback(), target)])
        .await
        .unwrap();
    let kept = rig.server.forwards()[0];
    let other = TcpListener::bind(loopback()).await.unwrap();
    let to = [target, other.local_addr().unwrap()];
    let changing = async {
        for turn in 0..200 {
            let mut ports = vec![forward(kept, to[turn % 2])];
            if turn % 3 == 0 {
                ports.insert(0, forward(loopback(), target));
            }
            rig.server.set_ports(ports).await.unwrap();
        }
    };
    let visiting = async {
        for _ in 0..200 {
            let mut visitor = connect(kept).await.unwrap();
            let mut accepted = within(LONG, "the dial", async {
                tokio::select! {
                    accepted = rig.target.accept() => accepted.unwrap().0,
                    accepted = other.accept() => accepted.unwrap().0,
                }
            })
            .await;
            round_trip(&mut visitor, &mut accepted).await;
        }
    };
    tokio::join!(changing, visiting);
    // Visitors reach the new target.
    rig.server
        .set_ports(vec![forward(kept, to[1])])
        .await
        .unwrap();
    let _visitor = connect(kept).await.unwrap();
    within(LONG, "the dial", other.accept()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn if_one_cannot_be_listened_on_nothing_changes() {
    let rig = rig().await;
    let target = rig.target.local_addr().unwrap();
    rig.server
        .set_ports(vec![forward(loopback(), target)])
        .await
        .unwrap();
    let kept = rig.server.forwards()[0];
    let taken = TcpListener::bind(loopback()).await.unwrap();
    let taken = taken.local_addr().unwrap();
    let _held = of_the_world(
        std::net::TcpListener::bind(taken)
            .or_else(|_| std::net::TcpListener::bind(loopback()))
            .unwrap(),
    );
    let held = _held.local_addr().unwrap();
    let free = {
        let listener = std::net::TcpListener::bind(loopback()).unwrap();
        listener.local_addr().unwrap()
    };
    let wanted = vec![forward(free, target), forward(held, target)];
    let error = rig.server.set_ports(wanted).await.unwrap_err();
    assert!(matches!(error, PortsError::Listen { .. }));
    assert!(error.to_string().contains(&held.to_string()), "{error}");
    assert_eq!(rig.server.forwards(), [kept]);
    let error = connect(free).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let mut visitor = connect(kept).await.unwrap();
    let (mut accepted, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
    round_trip(&mut visitor, &mut accepted).await;
    for wanted in [
        vec![forward(free, target), forward(free, target)],
        vec![Port::Socks5("0.0.0.0:0=web".parse().unwrap())],
        vec![Port::Connect("[::]:0=web".parse().unwrap())],
    ] {
        rig.server.set_ports(wanted).await.unwrap_err();
        assert_eq!(rig.server.forwards(), [kept]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flows_of_a_udp_port_end_with_it_or_with_its_target() {
    let rig = rig().await;
    let socket = async || of_the_world(UdpSocket::bind(loopback()).await.unwrap());
    let targets = [socket().await, socket().await];
    let to = [0, 1].map(|at: usize| targets[at].local_addr().unwrap());
    rig.server
        .set_ports(vec![datagrams(loopback(), to[0])])
        .await
        .unwrap();
    let port = rig.server.forwards()[0];
    let visitor = socket().await;
    visitor.connect(port).await.unwrap();
    let mut buffer = [0; 16];
    let mut sources = Vec::new();
    for at in [0, 1, 0] {
        rig.server
            .set_ports(vec![datagrams(port, to[at])])
            .await
            .unwrap();
        // Until the old flow has ended, it may still carry a datagram.
        let arrives = async {
            loop {
                visitor.send(b"?").await.unwrap();
                let received = targets[at].recv_from(&mut buffer);
                if let Ok(received) =
                    tokio::time::timeout(Duration::from_millis(50), received).await
                {
                    return received.unwrap().1;
                }
            }
        };
        sources.push(within(LONG, "a datagram at the new target", arrives).await);
    }
    assert_ne!(sources[0], sources[1]);
    assert_eq!(rig.server.counters().streams(), 1);
    rig.server.set_ports(fixed(&rig.server)).await.unwrap();
    assert_eq!(rig.server.counters().streams(), 1);
    rig.server.set_ports(Vec::new()).await.unwrap();
    rig.at_rest().await;
}

async fn at_path(path: &Path) -> Rig {
    let listen: Listen = format!("unix:{}", path.display()).parse().unwrap();
    Rig::start_with(|server| server.forwards[0].listen = listen, |_| {}).await
}

async fn visit(path: &Path) -> UnixStream {
    of_the_world(UnixStream::connect(path).await.unwrap())
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path)
        .unwrap()
        .permissions()
        .mode()
        & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_at_a_path_has_both_directions() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.sock");
    let rig = at_path(&path).await;
    assert_eq!(mode(&path), 0o600);
    let mut visitor = visit(&path).await;
    let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
    let data = pattern(3 * 1024 * 1024);
    let mut received = Vec::new();
    within(LONG, "the question", async {
        let send = async {
            visitor.write_all(&data).await.unwrap();
            visitor.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(send, target.read_to_end(&mut received));
        read.unwrap();
    })
    .await;
    assert!(received == data);
    target.write_all(b"answer").await.unwrap();
    drop(target);
    let mut answer = String::new();
    let read = within(PROMPT, "the answer", visitor.read_to_string(&mut answer)).await;
    read.unwrap();
    assert_eq!(answer, "answer");
    // A visitor that goes away unread resets its target.
    let mut visitor = visit(&path).await;
    let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
    target.write_all(b"unread").await.unwrap();
    visitor.read_exact(&mut [0]).await.unwrap();
    drop(visitor);
    let end = within(PROMPT, "the reset", drain(&mut target)).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    rig.at_rest().await;
    within(LONG, "the drain", rig.server.drain(Duration::ZERO)).await;
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_a_socket_is_replaced_only_if_nobody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.sock");
    let rig = rig().await;
    let target = rig.target.local_addr().unwrap();
    let listen = |place: &str| forward(place.parse::<Listen>().unwrap(), target);
    let at = format!("unix:{}", path.display());
    // Something else is there.
    std::fs::write(&path, "mine").unwrap();
    let set = |ports| rig.server.set_ports(ports);
    let error = set(vec![listen(&at)]).await.unwrap_err().to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    std::fs::remove_file(&path).unwrap();
    // Somebody listens.
    let live = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = set(vec![listen(&at)]).await.unwrap_err().to_string();
    assert!(error.contains("another program listens"), "{error}");
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    // Nothing listens there. A process that another test starts may have it a moment longer.
    drop(live);
    until("nobody to listen", || {
        std::os::unix::net::UnixStream::connect(&path).is_err()
    })
    .await;
    set(vec![listen(&at)]).await.unwrap();
    drop(visit(&path).await);
    // The mode changes without a gap.
    let wide = format!("unix:666:{}", path.display());
    set(vec![listen(&wide)]).await.unwrap();
    assert_eq!(mode(&path), 0o666);
    set(Vec::new()).await.unwrap();
    assert!(!path.exists());
    // A file that was replaced is not removed.
    set(vec![listen(&wide)]).await.unwrap();
    assert_eq!(mode(&path), 0o666);
    std::fs::remove_file(&path).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    set(Vec::new()).await.unwrap();
    assert!(
        std::fs::symlink_metadata(&path)
            .unwrap()
            .file_type()
            .is_socket()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_server_listens_on_no_port() {
    let rig = rig().await;
    let target = rig.target.local_addr().unwrap();
    rig.server
        .set_ports(vec![forward(loopback(), target)])
        .await
        .unwrap();
    let port = rig.server.forwards()[0];
    let mut visitor = connect(port).await.unwrap();
    let (mut accepted, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
    round_trip(&mut visitor, &mut accepted).await;
    within(LONG, "the drain", rig.server.drain(Duration::ZERO)).await;
    broken(&mut visitor, &mut accepted).await;
    refused(port).await;
    until("the end of the agent's stream", || {
        rig.agent.counters().unwrap().streams() == 0
    })
    .await;
}
