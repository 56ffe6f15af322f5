//! UDP ASSOCIATE of SOCKS5, spoken to byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tunnel::login::Users;
use tunnel::policy::Policy;
use tunnel::server::{Config, Port};

use crate::rig::{LONG, PROMPT, Rig, loopback, until, within};
use crate::world::{connect, of_the_world};

async fn rig(change: impl FnOnce(&mut Config)) -> Rig {
    Rig::start_with(
        |server| {
            server.ports = vec![Port::Socks5("127.0.0.1:0=web".parse().unwrap())];
            change(server);
        },
        |agent| agent.policy = Policy::new(vec!["udp:127.0.0.1:*".parse().unwrap()]),
    )
    .await
}

async fn socket() -> UdpSocket {
    of_the_world(UdpSocket::bind(loopback()).await.unwrap())
}

/// A visitor's association.
struct Association {
    control: TcpStream,
    relay: SocketAddr,
}

impl Association {
    /// Begins one for datagrams from `port` of the visitor; 0 leaves that open.
    async fn begin(rig: &Rig, port: u16) -> Self {
        let mut control = connect(rig.server.ports()[1].1.inet().unwrap())
            .await
            .unwrap();
        control.write_all(&[5, 1, 0]).await.unwrap();
        let mut method = [0; 2];
        control.read_exact(&mut method).await.unwrap();
        assert_eq!(method, [5, 0]);
        Self::ask(control, port).await
    }

    async fn ask(mut control: TcpStream, port: u16) -> Self {
        let mut request = vec![5, 3, 0, 1, 0, 0, 0, 0];
        request.extend(port.to_be_bytes());
        control.write_all(&request).await.unwrap();
        let mut reply = [0; 10];
        let read = within(LONG, "the reply", control.read_exact(&mut reply)).await;
        read.unwrap();
        assert_eq!(reply[..8], [5, 0, 0, 1, 127, 0, 0, 1]);
        let port = u16::from_be_bytes([reply[8], reply[9]]);
        Self {
            control,
            relay: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    }

    /// Whether its socket is gone.
    fn is_over(&self) -> bool {
        std::net::UdpSocket::bind(self.relay).is_ok()
    }
}

/// Returns what stands before a datagram for an address.
fn by_address(to: SocketAddr) -> Vec<u8> {
    let mut header = vec![0, 0, 0, 1, 127, 0, 0, 1];
    header.extend(to.port().to_be_bytes());
    header
}

fn by_name(name: &str, port: u16) -> Vec<u8> {
    let mut header = vec![0, 0, 0, 3, u8::try_from(name.len()).unwrap()];
    header.extend(name.as_bytes());
    header.extend(port.to_be_bytes());
    header
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let received = within(LONG, "a datagram", socket.recv_from(&mut buffer)).await;
    let (length, from) = received.unwrap();
    buffer.truncate(length);
    (buffer, from)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_target_has_a_flow_and_all_end_with_the_connection() {
    let rig = rig(|_| {}).await;
    let association = Association::begin(&rig, 0).await;
    let (visitor, targets) = (socket().await, [socket().await, socket().await]);
    for target in &targets {
        let address = target.local_addr().unwrap();
        for header in [by_address(address), by_name("localhost", address.port())] {
            for content in [&b"question"[..], b"", &[1; 1400]] {
                let datagram = [&header[..], content].concat();
                visitor.send_to(&datagram, association.relay).await.unwrap();
                let (received, from) = receive(target).await;
                assert_eq!(received, content);
                target.send_to(b"answer", from).await.unwrap();
                let (answer, from) = receive(&visitor).await;
                assert_eq!(from, association.relay);
                assert_eq!(answer, [&header[..], b"answer"].concat());
            }
        }
    }
    assert!(!association.is_over());
    let Association { control, relay } = association;
    drop(control);
    until("the end of the association", || {
        std::net::UdpSocket::bind(relay).is_ok()
    })
    .await;
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_strangers_and_what_is_no_datagram_are_dropped() {
    let rig = rig(|_| {}).await;
    let (visitor, other, target) = (socket().await, socket().await, socket().await);
    let elsewhere = of_the_world(UdpSocket::bind("127.0.0.2:0").await.unwrap());
    let header = by_address(target.local_addr().unwrap());
    let said = visitor.local_addr().unwrap().port();
    for port in [0, said] {
        let association = Association::begin(&rig, port).await;
        if port == said {
            // The visitor has said where it sends from, so that nobody can be faster.
            let datagram = [&header[..], b"faster"].concat();
            other.send_to(&datagram, association.relay).await.unwrap();
        }
        let datagram = [&header[..], b"elsewhere"].concat();
        elsewhere
            .send_to(&datagram, association.relay)
            .await
            .unwrap();
        visitor
            .send_to(&header[..9], association.relay)
            .await
            .unwrap();
        let mut fragment = [&header[..], b"fragment"].concat();
        fragment[2] = 1;
        visitor.send_to(&fragment, association.relay).await.unwrap();
        let datagram = [&header[..], b"whole"].concat();
        visitor.send_to(&datagram, association.relay).await.unwrap();
        assert_eq!(receive(&target).await.0, b"whole");
        // From now on the port is the visitor's.
        let datagram = [&header[..], b"other"].concat();
        other.send_to(&datagram, association.relay).await.unwrap();
        let datagram = [&header[..], b"again"].concat();
        visitor.send_to(&datagram, association.relay).await.unwrap();
        assert_eq!(receive(&target).await.0, b"again");
    }
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_dropped_and_flows_are_bounded() {
    let rig = rig(|server| server.datagrams.flows_max = 2).await;
    let association = Association::begin(&rig, 0).await;
    let (visitor, targets) = (
        socket().await,
        [socket().await, socket().await, socket().await],
    );
    for target in &targets {
        let datagram = [&by_address(target.local_addr().unwrap())[..], b"x"].concat();
        visitor.send_to(&datagram, association.relay).await.unwrap();
    }
    for target in &targets[..2] {
        receive(target).await;
    }
    until("the third to be counted", || {
        let text = rig.server.counters().text().unwrap();
        text.contains("watertight_datagrams_dropped_total{reason=\"flows\"} 1")
    })
    .await;
    // A flow that the agent refuses does not end the association.
    let another = Association::begin(&rig, 0).await;
    let denied = [0, 0, 0, 1, 127, 0, 0, 2, 0, 53, b'x'];
    visitor.send_to(&denied, another.relay).await.unwrap();
    let datagram = [&by_address(targets[2].local_addr().unwrap())[..], b"y"].concat();
    visitor.send_to(&datagram, another.relay).await.unwrap();
    assert_eq!(receive(&targets[2]).await.0, b"y");
    drop((association, another));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_association_needs_the_login_of_its_port() {
    let rig = rig(|server| {
        let Port::Socks5(proxy) = &mut server.ports[0] else {
            panic!("not SOCKS5")
        };
        proxy.login = true;
        server
            .access
            .set_users(Users::of_pair("anna:secret").unwrap());
    })
    .await;
    let mut control = connect(rig.server.ports()[1].1.inet().unwrap())
        .await
        .unwrap();
    control
        .write_all(b"\x05\x01\x02\x01\x04anna\x06secret")
        .await
        .unwrap();
    let mut replies = [0; 4];
    control.read_exact(&mut replies).await.unwrap();
    assert_eq!(replies, [5, 2, 1, 0]);
    let association = Association::ask(control, 0).await;
    let (visitor, target) = (socket().await, socket().await);
    let datagram = [&by_address(target.local_addr().unwrap())[..], b"x"].concat();
    visitor.send_to(&datagram, association.relay).await.unwrap();
    assert_eq!(receive(&target).await.0, b"x");
    drop(association);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_associations_and_a_hundred_of_them_leave_nothing() {
    let rig = rig(|_| {}).await;
    let (visitor, target) = (socket().await, socket().await);
    let datagram = [&by_address(target.local_addr().unwrap())[..], b"x"].concat();
    for _ in 0..100 {
        let association = Association::begin(&rig, 0).await;
        visitor.send_to(&datagram, association.relay).await.unwrap();
        receive(&target).await;
    }
    rig.at_rest().await;
    let association = Association::begin(&rig, 0).await;
    within(PROMPT, "the drain", rig.server.drain(Duration::ZERO)).await;
    until("the end of the association", || association.is_over()).await;
}
