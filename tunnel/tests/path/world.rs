//! The world around the tunnel: visitors, targets, strangers.
//!
//! When the tests run under the tracer, the tunnel is judged and the world is not: a visitor that
//! never reads and a target that never ends are what these tests are about. So every socket of the
//! world is annotated as pooled, which is judged by idleness alone, and a finding always means the
//! tunnel.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, ToSocketAddrs};
use tracer_abi::annotation::{self, Owner, Role};

use crate::rig::loopback;

mod relay;

pub(crate) use relay::{Pace, Relay};

/// Tells a tracer that a socket belongs to the world.
pub(crate) fn of_the_world<S: AsFd>(socket: S) -> S {
    // Without a tracer it has no effect.
    let _ = annotation::bind(&socket, Role::Pool, Owner::PRESENT, "the world");
    socket
}

pub(crate) async fn connect(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let mut addresses = tokio::net::lookup_host(address).await?;
    let address = addresses.next().ok_or(io::ErrorKind::NotFound)?;
    of_the_world(TcpSocket::new_v4()?).connect(address).await
}

/// A listener of the world.
pub(crate) struct TcpListener(tokio::net::TcpListener);

impl TcpListener {
    pub(crate) async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::bind(address).await?;
        Ok(Self(of_the_world(listener)))
    }

    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((of_the_world(stream), peer))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A listener that answers no SYN, because its backlog is full.
pub(crate) struct BlackHole {
    pub(crate) address: SocketAddr,
    _listener: Socket,
    _filling: Vec<TcpStream>,
}

impl BlackHole {
    pub(crate) async fn open() -> Self {
        let listener = of_the_world(Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
        listener.bind(&loopback().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut filling = Vec::new();
        while let Ok(filled) =
            tokio::time::timeout(Duration::from_millis(200), connect(address)).await
        {
            filling.push(filled.unwrap());
        }
        Self {
            address,
            _listener: listener,
            _filling: filling,
        }
    }

    /// How many sockets of this network namespace are dialing it (SYN_SENT,
    /// `include/net/tcp_states.h`).
    pub(crate) fn dials(&self) -> usize {
        let remote = format!("0100007F:{:04X} 02", self.address.port());
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().filter(|line| line.contains(&remote)).count()
    }
}
