//! The socket module: every socket is made, annotated and released here.
//!
//! A [`Socket`] is owned by one task, which its scope owns. Descriptors are never duplicated, so
//! dropping the socket closes it. A [`Mark`] can annotate a socket without keeping it open.
//! Annotations inform a tracer. Without one they have no effect.

use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fmt, io};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpSocket;
pub use tracer_abi::annotation::{Owner, Role};

mod datagram;
mod listener;
mod options;
mod stream;
mod unix;
mod unix_listener;

use tunnel_proto::mux::Ending;

pub use crate::io::socket::datagram::{DatagramListener, DatagramSocket, Replies};
pub use crate::io::socket::listener::Listener;
pub use crate::io::socket::options::{Keepalive, Options};
use crate::io::socket::stream::Io;
pub use crate::io::socket::unix::SocketFile;
pub use crate::io::socket::unix_listener::UnixListener;

/// The owner of sockets that serve no stream.
pub const NOBODY: Owner = Owner::PRESENT;

/// A connected TCP or Unix socket.
#[derive(Debug)]
pub struct Socket {
    io: Arc<Io>,
    peer: PeerAddr,
}

/// The address of a socket's other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddr {
    /// An IP address and port.
    Inet(SocketAddr),
    /// A process of this machine.
    Unix,
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl Socket {
    /// Connects to `address`. The socket is bound to its owner before the first packet is sent.
    ///
    /// # Errors
    ///
    /// What `socket(2)` or `connect(2)` say.
    #[expect(
        clippy::disallowed_methods,
        reason = "only the socket module makes sockets"
    )]
    pub async fn dial(
        address: SocketAddr,
        role: Role,
        owner: Owner,
        label: &str,
    ) -> io::Result<Self> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        bind(&socket, role, owner, label);
        socket.set_nodelay(true)?;
        let io = socket.connect(address).await?;
        Ok(Self {
            io: Arc::new(Io::Tcp(io)),
            peer: PeerAddr::Inet(address),
        })
    }

    /// Returns the address of the other end.
    #[must_use]
    pub const fn peer_addr(&self) -> PeerAddr {
        self.peer
    }

    /// Returns the address of this end.
    ///
    /// # Errors
    ///
    /// `AddrNotAvailable` for a Unix socket, or what `getsockname(2)` says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &*self.io {
            Io::Tcp(stream) => stream.local_addr(),
            Io::Unix(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    /// Binds the socket to an owner, from now on.
    pub fn bind(&self, role: Role, owner: Owner, label: &str) {
        bind(&*self.io, role, owner, label);
    }

    /// Returns a handle that can annotate the socket and does not keep it open.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            io: Arc::downgrade(&self.io) as Weak<dyn AsFd + Send + Sync>,
        }
    }

    /// Finishes our direction: the other end reads the end of the stream after all bytes.
    ///
    /// # Errors
    ///
    /// What `shutdown(2)` says.
    pub fn finish(&self) -> io::Result<()> {
        SockRef::from(&*self.io).shutdown(Shutdown::Write)
    }

    /// Makes closing the socket a reset (RST) instead of an orderly end. A Unix socket has no
    /// resets: its other end reads the end of the stream, or gets a reset if bytes are unread.
    pub fn reset_on_release(&self) {
        reset_on_release(&*self.io);
    }

    /// Bounds the unsent bytes in the kernel, so that urgent ones do not wait behind them.
    pub fn bound_unsent(&self, bytes: u32) {
        if let Err(error) = SockRef::from(&*self.io).set_tcp_notsent_lowat(bytes) {
            tracing::debug!(%error, "TCP_NOTSENT_LOWAT refused");
        }
    }

    /// Sets how TCP detects that the other end is gone.
    pub fn set_options(&self, options: Options) {
        match &*self.io {
            Io::Tcp(io) => options::apply(io, options),
            Io::Unix(_) => {}
        }
    }

    /// Whether the connection broke because of a TCP timeout. It is reported once, and not if a
    /// read or a write has reported it.
    pub(crate) fn timed_out(&self) -> bool {
        let error = SockRef::from(&*self.io).take_error();
        error.is_ok_and(|error| error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut))
    }

    /// Returns when the connection was reset. An orderly end is not reported, because it may be a
    /// half-close.
    pub fn hung_up(&self) -> impl Future<Output = ()> + Send + 'static {
        // The future belongs to the task that owns the socket and ends with it.
        let io = Arc::clone(&self.io);
        async move {
            loop {
                match io.ready(Interest::ERROR).await {
                    Ok(ready) if ready.is_error() => return,
                    Ok(_) => tokio::task::yield_now().await,
                    Err(_) => return,
                }
            }
        }
    }

    /// Reads at most `max` bytes. An empty result is the end of the stream. While it waits,
    /// `buffer` holds no memory.
    ///
    /// # Errors
    ///
    /// What `recv(2)` says.
    pub async fn read(&self, buffer: &mut ReadBuffer, max: usize) -> io::Result<bytes::Bytes> {
        loop {
            let room = buffer.room();
            match self.io.try_read_buf(&mut bytes::BufMut::limit(room, max)) {
                Ok(_) => return Ok(buffer.take()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    buffer.bytes = BytesMut::new();
                    self.io.readable().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the next byte without consuming it, or `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// What `recv(2)` says.
    pub async fn peek(&self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let seen = self.io.peek(&mut first).await?;
        Ok((seen > 0).then_some(first[0]))
    }

    /// Writes what the kernel accepts of `data` at once, and returns how much.
    ///
    /// # Errors
    ///
    /// What `send(2)` says, including `WouldBlock`.
    pub fn try_write(&self, data: &[u8]) -> io::Result<usize> {
        self.io.try_write(data)
    }

    /// Writes some of `data` and returns how much.
    ///
    /// # Errors
    ///
    /// What `send(2)` says.
    pub async fn write(&self, data: &[u8]) -> io::Result<usize> {
        loop {
            match self.io.try_write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.io.writable().await?
                }
                done => return done,
            }
        }
    }
}

/// The buffer of [`Socket::read`]. Its size follows the size of recent reads.
#[derive(Debug)]
pub struct ReadBuffer {
    bytes: BytesMut,
    size: usize,
}

impl ReadBuffer {
    const MIN: usize = 4 * 1024;
    const MAX: usize = 64 * 1024;

    fn room(&mut self) -> &mut BytesMut {
        if self.bytes.capacity() < Self::MIN {
            self.bytes.reserve(self.size);
        }
        &mut self.bytes
    }

    fn take(&mut self) -> bytes::Bytes {
        let read = self.bytes.len();
        if read >= self.size {
            self.size = (self.size * 4).min(Self::MAX);
        } else if read < self.size / 4 {
            self.size = (self.size / 2).max(Self::MIN);
        }
        self.bytes.split().freeze()
    }
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self {
            bytes: BytesMut::new(),
            size: Self::MIN,
        }
    }
}

/// Annotates a socket that another task owns. It does not keep the socket open. After the socket is
/// closed it does nothing.
#[derive(Clone)]
pub struct Mark {
    io: Weak<dyn AsFd + Send + Sync>,
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mark")
            .field("released", &(self.io.strong_count() == 0))
            .finish()
    }
}

impl Mark {
    /// Binds the socket to an owner, from now on.
    pub fn bind(&self, role: Role, owner: Owner, label: &str) {
        if let Some(io) = self.io.upgrade() {
            bind(&io, role, owner, label);
        }
    }

    /// Makes closing the socket a reset (RST) instead of an orderly end.
    pub fn reset_on_release(&self) {
        if let Some(io) = self.io.upgrade() {
            reset_on_release(&io);
        }
    }

    /// Announces that `owner`'s stream has ended by protocol. Any socket can carry this call.
    pub fn end(&self, owner: Owner, ending: Ending) {
        let Some(io) = self.io.upgrade() else {
            tracing::debug!(
                session = owner.session,
                stream = owner.stream,
                "no open socket to send an END through"
            );
            return;
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "only the socket module makes sockets"
        )]
        log_refusal(tracer_abi::annotation::end(
            &io,
            owner,
            u16::from(ending.code()),
        ));
    }
}

fn reset_on_release(socket: &impl AsFd) {
    if let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "SO_LINGER refused");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "only the socket module makes sockets"
)]
fn bind(socket: &impl AsFd, role: Role, owner: Owner, label: &str) {
    log_refusal(tracer_abi::annotation::bind(socket, role, owner, label));
}

fn log_refusal(result: io::Result<tracer_abi::annotation::Heard>) {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    if let Err(error) = result
        && !LOGGED.swap(true, Ordering::Relaxed)
    {
        tracing::debug!(
            %error,
            "the tracer refused an annotation; further refusals are not logged"
        );
    }
}
