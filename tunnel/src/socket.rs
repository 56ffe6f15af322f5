//! The one door: every TCP socket is made, annotated and released here.
//!
//! A [`Socket`] is owned by one task, which its scope owns; dropping it releases the only descriptor, since descriptors are never
//! copied. A [`Mark`] can annotate a socket and does not keep it open. Annotations are news for a tracer and never
//! matter to the tunnel's work: without one they do nothing.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
pub use tracer_abi::annotation::{Owner, Role};

use crate::mux::Ending;

/// The owner of sockets that serve no stream.
pub const NOBODY: Owner = Owner::PRESENT;

/// A connected TCP socket.
#[derive(Debug)]
pub struct Socket {
    io: Arc<TcpStream>,
    peer: SocketAddr,
}

impl Socket {
    /// Dials `address`. The socket is bound to its owner before the first packet leaves.
    ///
    /// # Errors
    ///
    /// What `socket(2)` or `connect(2)` say.
    #[expect(clippy::disallowed_methods, reason = "the one door")]
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
            io: Arc::new(io),
            peer: address,
        })
    }

    /// Returns the other end's address.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Tells the kernel whom the socket serves from now on.
    pub fn bind(&self, role: Role, owner: Owner, label: &str) {
        bind(&*self.io, role, owner, label);
    }

    /// Returns a handle that can annotate the socket and does not hold it.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            io: Arc::downgrade(&self.io) as Weak<dyn AsFd + Send + Sync>,
        }
    }

    /// Finishes our direction: the other end reads the end of the stream once it has read everything.
    ///
    /// # Errors
    ///
    /// What `shutdown(2)` says.
    pub fn finish(&self) -> io::Result<()> {
        SockRef::from(&*self.io).shutdown(Shutdown::Write)
    }

    /// Makes the release of the socket a reset (RST) instead of an orderly end.
    pub fn reset_on_release(&self) {
        if let Err(error) = self.io.set_zero_linger() {
            tracing::debug!(%error, "SO_LINGER refused");
        }
    }

    /// Bounds what the kernel holds of unsent bytes, so that what matters now does not wait behind it.
    pub fn bound_unsent(&self, bytes: u32) {
        if let Err(error) = SockRef::from(&*self.io).set_tcp_notsent_lowat(bytes) {
            tracing::debug!(%error, "TCP_NOTSENT_LOWAT refused");
        }
    }

    /// Returns when the connection was reset. Says nothing of an orderly end, which may be half of one.
    pub fn hung_up(&self) -> impl Future<Output = ()> + Send + 'static {
        // The waiter is a future of the task that owns the socket; it ends with it.
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

    /// Reads at most `max` bytes into a piece of `buffer`; an empty piece is the end of the stream. While nothing arrives
    /// the buffer holds no memory.
    ///
    /// # Errors
    ///
    /// What `recv(2)` says.
    pub async fn read(&self, buffer: &mut BytesMut, max: usize) -> io::Result<bytes::Bytes> {
        loop {
            if buffer.capacity() < READ_MIN {
                buffer.reserve(READ_SIZE);
            }
            let mut limited = bytes::BufMut::limit(&mut *buffer, max);
            match self.io.try_read_buf(&mut limited) {
                Ok(_) => return Ok(buffer.split().freeze()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *buffer = BytesMut::new();
                    self.io.readable().await?;
                }
                Err(error) => return Err(error),
            }
        }
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

const READ_SIZE: usize = 32 * 1024;
const READ_MIN: usize = 4 * 1024;

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.io.poll_read_ready(cx))?;
            let mut target = &mut *buf;
            match self.io.try_read_buf(&mut target) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_write_ready(cx))?;
            match self.io.try_write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_write_ready(cx))?;
            match self.io.try_write_vectored(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.finish() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

/// Annotates a socket that somebody else owns. It does not keep the socket open; once that is released it does nothing.
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
    /// Tells the kernel whom the socket serves from now on.
    pub fn bind(&self, role: Role, owner: Owner, label: &str) {
        if let Some(io) = self.io.upgrade() {
            bind(&io, role, owner, label);
        }
    }

    /// Makes the release of the socket a reset (RST) instead of an orderly end.
    pub fn reset_on_release(&self) {
        if let Some(io) = self.io.upgrade()
            && let Err(error) = SockRef::from(&io).set_linger(Some(Duration::ZERO))
        {
            tracing::debug!(%error, "SO_LINGER refused");
        }
    }

    /// Tells the kernel that `owner`'s request is over by protocol. The socket only carries the call.
    pub fn end(&self, owner: Owner, ending: Ending) {
        let Some(io) = self.io.upgrade() else {
            tracing::debug!(
                session = owner.session,
                stream = owner.stream,
                "no socket left to tell an END through"
            );
            return;
        };
        #[expect(clippy::disallowed_methods, reason = "the one door")]
        heard(tracer_abi::annotation::end(
            &io,
            owner,
            u16::from(ending.code()),
        ));
    }
}

/// A listening TCP socket.
pub struct Listener {
    io: Arc<TcpListener>,
    address: SocketAddr,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", &self.address)
            .finish()
    }
}

impl Listener {
    /// Listens on `address`; port 0 takes a free port.
    ///
    /// # Errors
    ///
    /// What `bind(2)` says, with the address.
    #[expect(clippy::disallowed_methods, reason = "the one door")]
    pub async fn listen(address: SocketAddr, label: &str) -> io::Result<Self> {
        let listen = async {
            let io = TcpListener::bind(address).await?;
            let address = io.local_addr()?;
            let io = Arc::new(io);
            Ok::<_, io::Error>(Self { io, address })
        };
        let listener = listen.await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        })?;
        bind(&*listener.io, Role::Listener, NOBODY, label);
        Ok(listener)
    }

    /// Returns the address that it listens on, with the real port.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a handle through which annotations can be told and that does not hold the listener.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            io: Arc::downgrade(&self.io) as Weak<dyn AsFd + Send + Sync>,
        }
    }

    /// Takes the next connection. Errors that concern one connection only are skipped; when descriptors or memory run out it
    /// waits a moment instead of spinning.
    #[expect(clippy::disallowed_methods, reason = "the one door")]
    pub async fn accept(&self) -> Socket {
        loop {
            match self.io.accept().await {
                Ok((io, peer)) => {
                    if let Err(error) = io.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY refused");
                    }
                    return Socket {
                        io: Arc::new(io),
                        peer,
                    };
                }
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    tracing::warn!(%error, listener = %self.address, "cannot accept; is the limit of open files reached?");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Resolves a host name. An address resolves to itself.
///
/// # Errors
///
/// What the system's resolver says.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

#[expect(clippy::disallowed_methods, reason = "the one door")]
fn bind(socket: &impl AsFd, role: Role, owner: Owner, label: &str) {
    heard(tracer_abi::annotation::bind(socket, role, owner, label));
}

fn heard(result: io::Result<tracer_abi::annotation::Heard>) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if let Err(error) = result
        && !SAID.swap(true, Ordering::Relaxed)
    {
        tracing::debug!(%error, "the tracer refused an annotation; further refusals are not logged");
    }
}
