//! UDP sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{Interest, ReadBuf};
use tokio::net::UdpSocket;
use tunnel_proto::wire::datagram::LENGTH_MAX;

use crate::io::socket::{NOBODY, Owner, Role, bind};

/// A UDP socket with one peer.
#[derive(Debug)]
pub struct DatagramSocket {
    io: UdpSocket,
}

/// A UDP socket that receives from everyone.
#[derive(Debug)]
pub struct DatagramListener {
    io: Arc<UdpSocket>,
    address: SocketAddr,
}

/// Sends datagrams from a listener that another task owns. It does not keep the listener open.
#[derive(Clone, Debug)]
pub struct Replies {
    io: Weak<UdpSocket>,
    peer: SocketAddr,
}

fn unbound(family_of: SocketAddr) -> io::Result<socket2::Socket> {
    #[expect(
        clippy::disallowed_methods,
        reason = "only the socket module makes sockets"
    )]
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(family_of),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[expect(
    clippy::disallowed_methods,
    reason = "only the socket module makes sockets"
)]
fn adopt(socket: socket2::Socket) -> io::Result<UdpSocket> {
    UdpSocket::from_std(socket.into())
}

impl DatagramSocket {
    /// Makes a socket that sends to `address` and receives only from there. It is bound to its
    /// owner before it has an address.
    ///
    /// # Errors
    ///
    /// What `socket(2)` or `connect(2)` say.
    pub async fn dial(
        address: SocketAddr,
        role: Role,
        owner: Owner,
        label: &str,
    ) -> io::Result<Self> {
        let socket = unbound(address)?;
        bind(&socket, role, owner, label);
        socket.connect(&address.into())?;
        let io = adopt(socket)?;
        // It is writable at once, but tokio sends nothing before it knows that.
        io.writable().await?;
        Ok(Self { io })
    }

    /// Receives the next datagram. Errors of earlier ones (ICMP) are skipped. While it waits, the
    /// buffer holds no memory.
    ///
    /// # Errors
    ///
    /// What waiting for the socket says.
    pub async fn receive(&self, buffer: &mut BytesMut) -> io::Result<Bytes> {
        loop {
            // A source that never pauses must not starve other tasks.
            tokio::task::consume_budget().await;
            buffer.clear();
            buffer.reserve(LENGTH_MAX);
            match self.io.try_recv_buf(&mut buffer.limit(LENGTH_MAX)) {
                Ok(_) => return Ok(Bytes::copy_from_slice(buffer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *buffer = BytesMut::new();
                    self.io.readable().await?;
                }
                Err(error) => tracing::debug!(%error, "a datagram did not arrive"),
            }
        }
    }

    /// Takes the next datagram into `buffer`, which cuts it off where it is shorter, and returns
    /// its length.
    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let received = self.io.poll_recv(cx, &mut buffer);
        received.map_ok(|()| buffer.filled().len())
    }

    /// Returns what the last datagram met (an ICMP error), once it is known. Waiting for a datagram
    /// does not tell.
    pub(crate) async fn failure(&self) -> io::Error {
        loop {
            if let Err(error) = self.io.ready(Interest::ERROR).await {
                return error;
            }
            match self.io.take_error() {
                Ok(Some(error)) | Err(error) => return error,
                Ok(None) => {
                    // It was taken by a call in between; the next one is waited for.
                    let forget = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    let _ = self.io.try_io(Interest::ERROR, forget);
                }
            }
        }
    }

    /// Sends a datagram when the socket has room for it.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        datagram: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io.poll_send(cx, datagram)
    }

    /// Sends a datagram, or drops it.
    ///
    /// # Errors
    ///
    /// What `send(2)` says: the datagram was dropped.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = match self.io.try_send(datagram) {
            // The error belongs to an earlier datagram and is reported once.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.io.try_send(datagram)
            }
            sent => sent,
        };
        sent.map(drop)
    }
}

impl DatagramListener {
    /// Listens on `address`; port 0 takes a free port.
    ///
    /// # Errors
    ///
    /// What `bind(2)` says, with the address.
    pub fn listen(address: SocketAddr, label: &str) -> io::Result<Self> {
        let listen = || {
            let socket = unbound(address)?;
            bind(&socket, Role::Listener, NOBODY, label);
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&address.into())?;
            let io = Arc::new(adopt(socket)?);
            let address = io.local_addr()?;
            Ok::<_, io::Error>(Self { io, address })
        };
        listen().map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        })
    }

    /// Returns the address that it listens on, with the real port.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Receives the next datagram into `buffer`, which is cleared first, and returns its sender.
    pub async fn receive(&self, buffer: &mut BytesMut) -> SocketAddr {
        loop {
            buffer.clear();
            buffer.reserve(LENGTH_MAX);
            match self.io.recv_buf_from(&mut buffer.limit(LENGTH_MAX)).await {
                Ok((_, peer)) => return peer,
                Err(error) => {
                    tracing::warn!(%error, listener = %self.address, "cannot receive");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    /// Returns a handle that sends to `peer`.
    #[must_use]
    pub fn replies(&self, peer: SocketAddr) -> Replies {
        Replies {
            io: Arc::downgrade(&self.io),
            peer,
        }
    }
}

const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

impl Replies {
    /// Sends a datagram, or drops it.
    ///
    /// # Errors
    ///
    /// What `sendto(2)` says, or that the listener is gone: the datagram was dropped.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let io = self.io.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        io.try_send_to(datagram, self.peer).map(drop)
    }
}
