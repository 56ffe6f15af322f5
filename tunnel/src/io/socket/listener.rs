//! Listening TCP sockets.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fmt, io};

use tokio::net::TcpListener;

use crate::io::socket::{Io, Mark, NOBODY, Options, PeerAddr, Role, Socket, bind, options};

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
    #[expect(
        clippy::disallowed_methods,
        reason = "only the socket module makes sockets"
    )]
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

    /// Sets how TCP detects that the other end is gone, for all connections that are accepted from
    /// now on.
    pub fn set_options(&self, options: Options) {
        options::apply(&*self.io, options);
    }

    /// Returns a handle that can send annotations and does not keep the listener open.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            io: Arc::downgrade(&self.io) as Weak<dyn AsFd + Send + Sync>,
        }
    }

    /// Accepts the next connection. Errors of a single connection are skipped. If descriptors or
    /// memory run out, it waits a moment instead of spinning.
    #[expect(
        clippy::disallowed_methods,
        reason = "only the socket module makes sockets"
    )]
    pub async fn accept(&self) -> Socket {
        loop {
            match self.io.accept().await {
                Ok((io, peer)) => {
                    if let Err(error) = io.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY refused");
                    }
                    return Socket {
                        io: Arc::new(Io::Tcp(io)),
                        peer: PeerAddr::Inet(peer),
                    };
                }
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        listener = %self.address,
                        "cannot accept; is the limit of open files reached?"
                    );
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
