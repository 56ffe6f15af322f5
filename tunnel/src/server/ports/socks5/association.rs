//! UDP ASSOCIATE of SOCKS5 (RFC 1928, section 7): the visitor's datagrams name their targets, and
//! those to each target are a flow. The association ends with the visitor's TCP connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::BytesMut;
use tunnel_proto::socks5::datagram::{decode, header};
use tunnel_proto::socks5::{Code, Version};
use tunnel_proto::target::{Endpoint, Target};

use crate::io::socket::{DatagramListener, PeerAddr, ReadBuffer, Socket};
use crate::server::config::port::ProxyPort;
use crate::server::open::{Entrypoint, OpenRequest};
use crate::server::ports::datagrams::Flows;
use crate::server::ports::socks5::{PIECE, reply_and_close, send};
use crate::server::shared::Shared;

/// Where the datagrams of an association may come from: the address of the visitor's connection,
/// and one port.
#[derive(Debug)]
struct Source {
    ip: IpAddr,
    /// What the visitor said, or the port of its first datagram.
    port: Option<u16>,
}

impl Source {
    fn new(visitor: SocketAddr, said: Option<SocketAddr>) -> Self {
        let ip = visitor.ip().to_canonical();
        let said = said.filter(|said| {
            // Behind a NAT it knows neither its address nor its port.
            said.ip().is_unspecified() || said.ip().to_canonical() == ip
        });
        Self {
            ip,
            port: said.map(|said| said.port()),
        }
    }

    fn allows(&self, from: SocketAddr) -> bool {
        from.ip().to_canonical() == self.ip && self.port.is_none_or(|port| port == from.port())
    }
}

/// Serves an association until the visitor's connection ends or the server drains. `said` is where
/// the visitor says that its datagrams come from.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    proxy: &ProxyPort,
    user: Option<&str>,
    socket: &Socket,
    said: Option<SocketAddr>,
) {
    let PeerAddr::Inet(visitor) = socket.peer_addr() else {
        // There is no address to take datagrams from.
        return reply_and_close(socket, &Code::NoCommand.reply(Version::V5)).await;
    };
    let label = format!("datagrams of visitor {visitor}");
    let listener = match listen(socket, &label) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%visitor, %error, "no UDP association");
            return reply_and_close(socket, &Code::Failure.reply(Version::V5)).await;
        }
    };
    let reply = Code::Succeeded.reply_with(listener.address());
    if send(socket, &reply).await.is_err() {
        return;
    }
    tracing::debug!(%visitor, user, at = %listener.address(), "UDP association");
    tokio::select! {
        biased;
        () = shared.draining.cancelled() => {}
        () = ended(socket) => {}
        () = relay(shared, proxy, user, &listener, Source::new(visitor, said)) => {}
    }
}

/// Listens at the address that the visitor has connected to.
fn listen(socket: &Socket, label: &str) -> io::Result<DatagramListener> {
    let mut own = socket.local_addr()?;
    own.set_port(0);
    if let IpAddr::V4(ip) = own.ip().to_canonical() {
        own = SocketAddr::new(ip.into(), 0);
    }
    DatagramListener::listen(own, label)
}

/// Returns when the visitor's connection ends. What it sends there is dropped.
async fn ended(socket: &Socket) {
    let mut buffer = ReadBuffer::default();
    while socket
        .read(&mut buffer, PIECE)
        .await
        .is_ok_and(|data| !data.is_empty())
    {}
}

/// Relays datagrams for as long as it is polled.
async fn relay(
    shared: &Arc<Shared>,
    proxy: &ProxyPort,
    user: Option<&str>,
    listener: &DatagramListener,
    mut source: Source,
) {
    let flows = Flows::<Endpoint>::default();
    let mut buffer = BytesMut::new();
    loop {
        let from = listener.receive(&mut buffer).await;
        if !source.allows(from) {
            tracing::debug!(%from, ?source, "a datagram of somebody else was dropped");
            continue;
        }
        let (endpoint, content) = match decode(&buffer) {
            Ok(decoded) => decoded,
            Err(error) => {
                tracing::debug!(%from, %error, "a datagram was dropped");
                continue;
            }
        };
        source.port = Some(from.port());
        let target = Target::Udp(endpoint.clone());
        let request = OpenRequest {
            entrypoint: Entrypoint::Port {
                kind: "socks5",
                listen: &proxy.listen,
            },
            user,
            agent: &proxy.agent,
            target: &target,
        };
        let header = header(&endpoint);
        flows.send(shared, endpoint, content, request, || {
            let replies = listener.replies(from);
            move |datagram: &[u8]| replies.send(&[&header, datagram].concat())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_visitor_s_address_and_one_port_are_served() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let visitor = address("[::ffff:10.0.0.1]:4000");
        for (said, served, refused) in [
            (None, "10.0.0.1:5", "10.0.0.2:5"),
            (Some("0.0.0.0:5"), "10.0.0.1:5", "10.0.0.1:6"),
            (Some("10.0.0.1:5"), "10.0.0.1:5", "10.0.0.1:6"),
            (Some("192.168.0.9:5"), "10.0.0.1:6", "192.168.0.9:5"),
        ] {
            let source = Source::new(visitor, said.map(address));
            assert!(source.allows(address(served)), "{said:?}");
            assert!(!source.allows(address(refused)), "{said:?}");
        }
    }
}
