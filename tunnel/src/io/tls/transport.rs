//! The transport of a link or of a visitor's requests: a socket, with or without TLS.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::{ConnectionCommon, SideData};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use crate::io::socket::Socket;

/// A connected socket after its handshake. TLS buffers up to 64 KiB per direction in addition to
/// the kernel.
///
/// A FIN without `close_notify` is an end of the stream like any other: HTTP and WebSocket detect
/// truncation by themselves.
#[derive(Debug)]
pub enum Transport {
    /// The bare socket.
    Plain(Socket),
    /// A socket with TLS.
    Tls(Box<TlsStream<Socket>>),
}

impl From<Socket> for Transport {
    fn from(socket: Socket) -> Self {
        Self::Plain(socket)
    }
}

impl Transport {
    /// Returns the socket, to annotate and configure it.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Returns the certificate of the other end, which the handshake has verified.
    #[must_use]
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.peer_certificates()?.first(),
        }
    }

    /// Sends `close_notify` as far as the socket accepts it at once: closing must not wait for the
    /// reader. Without TLS it does nothing.
    pub fn send_close_notify(&mut self) {
        let Self::Tls(stream) = self else { return };
        match &mut **stream {
            TlsStream::Client(stream) => {
                let (socket, session) = stream.get_mut();
                send_close_notify(socket, session);
            }
            TlsStream::Server(stream) => {
                let (socket, session) = stream.get_mut();
                send_close_notify(socket, session);
            }
        }
    }
}

fn send_close_notify<S: SideData>(socket: &Socket, session: &mut ConnectionCommon<S>) {
    session.send_close_notify();
    let mut at_once = AtOnce(socket);
    while session.wants_write() && matches!(session.write_tls(&mut at_once), Ok(1..)) {}
}

struct AtOnce<'a>(&'a Socket);

impl Write for AtOnce<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.try_write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(stream) => match ready!(Pin::new(&mut **stream).poll_read(cx, buf)) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                done => Poll::Ready(done),
            },
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, data),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, data),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut *this).poll_flush(cx))?;
        this.send_close_notify();
        match this {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.get_mut().0).poll_shutdown(cx),
        }
    }
}
