//! Connections that change their protocol: `Upgrade` (RFC 9110, section 7.8), as WebSocket, SPDY and
//! `docker exec` ask for.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::io::tls::Transport;
use crate::server::front::request::has_token;
use crate::server::front::upload::TargetIo;
use crate::server::visitor::{Visitor, VisitorIo};
use crate::session::Stream;

/// The most bytes of one read.
const PIECE: usize = 8 * 1024;

/// What a visitor asks to change to.
pub(super) struct Wanted {
    pub(super) protocols: HeaderValue,
    pub(super) on_upgrade: OnUpgrade,
}

impl Wanted {
    /// Takes it out of a request; `None` if nothing is asked for.
    pub(super) fn take(request: &mut Request<Incoming>) -> Option<Self> {
        let headers = request.headers();
        if request.version() != Version::HTTP_11
            || !has_token(headers, &header::CONNECTION, "upgrade")
        {
            return None;
        }
        Some(Self {
            protocols: headers.get(header::UPGRADE)?.clone(),
            on_upgrade: hyper::upgrade::on(request),
        })
    }
}

/// Both ends of a connection that has left HTTP, and what hyper has read of them already.
pub(super) struct Switched {
    visitor: (Transport, Bytes),
    target: (Stream, Bytes),
}

impl Switched {
    /// Takes them from hyper; `None` if they are no connections of this server.
    pub(super) fn new(visitor: Upgraded, target: Upgraded) -> Option<Self> {
        let visitor = visitor.downcast::<TokioIo<VisitorIo>>().ok()?;
        let target = target.downcast::<TokioIo<TargetIo>>().ok()?;
        Some(Self {
            visitor: (visitor.io.into_inner().into_transport(), visitor.read_buf),
            target: (target.io.into_inner().into_stream(), target.read_buf),
        })
    }

    /// Joins both until both directions have ended. A direction that ends is passed on as a
    /// half-close; then the other may pause for `linger` at most. If one breaks, the visitor's
    /// connection is reset.
    pub(super) async fn join(self, visitor: &Visitor, linger: Duration) -> io::Result<()> {
        let Self {
            visitor: (transport, from_visitor),
            target: (stream, from_target),
        } = self;
        let hung_up = transport.socket().hung_up();
        let (mut visitor_reads, mut visitor_writes) = split(transport);
        let (mut target_reads, mut target_writes) = split(stream);
        let (inward_ended, outward_ended) = (CancellationToken::new(), CancellationToken::new());
        let inward = async {
            let pause = Pause {
                other: &outward_ended,
                linger,
            };
            copy(from_visitor, &mut visitor_reads, &mut target_writes, pause).await?;
            inward_ended.cancel();
            Ok(())
        };
        let outward = async {
            let pause = Pause {
                other: &inward_ended,
                linger,
            };
            copy(from_target, &mut target_reads, &mut visitor_writes, pause).await?;
            outward_ended.cancel();
            Ok(())
        };
        // As long as the visitor may still send, a read tells that it has left.
        let left = async {
            inward_ended.cancelled().await;
            hung_up.await;
        };
        let result = tokio::select! {
            biased;
            result = async { tokio::try_join!(inward, outward) } => result.map(|_| ()),
            () = left => Err(io::ErrorKind::ConnectionReset.into()),
        };
        if result.is_err() {
            visitor.abort();
        }
        result
    }
}

/// How long a direction may pause: for ever, until the other has ended.
struct Pause<'a> {
    other: &'a CancellationToken,
    linger: Duration,
}

impl Pause<'_> {
    /// Returns when it has been too long.
    async fn over(&self) -> io::Error {
        self.other.cancelled().await;
        sleep(self.linger).await;
        io::ErrorKind::TimedOut.into()
    }
}

/// Copies one direction to its end, `first` before the rest, and passes the end on.
async fn copy(
    first: Bytes,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    pause: Pause<'_>,
) -> io::Result<()> {
    let mut piece = first.to_vec();
    loop {
        let write = async {
            to.write_all(&piece).await?;
            to.flush().await
        };
        tokio::select! {
            written = write => written?,
            paused = pause.over() => return Err(paused),
        }
        piece.resize(PIECE, 0);
        let length = tokio::select! {
            length = from.read(&mut piece) => length?,
            paused = pause.over() => return Err(paused),
        };
        if length == 0 {
            return to.shutdown().await;
        }
        piece.truncate(length);
    }
}
