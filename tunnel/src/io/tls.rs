//! TLS 1.2 and 1.3 for the front and for connections to a server, by rustls.
//!
//! [`Server`] and [`Client`] are built from PEM files ([`Files`], [`ClientFiles`]). Errors name the
//! file. A server without a certificate can make one ([`authority`]), and agents trust it by a
//! [`Pin`] of its authority. Verification cannot be switched off. Where no root certificate can be
//! used, a pin can.
//!
//! After its handshake a connection is a [`Transport`], with or without TLS.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use tokio::time::timeout;

use crate::io::socket::{ReadBuffer, Socket};

pub mod authority;
mod certificate;
mod client;
mod error;
mod identity;
mod pem;
mod pin;
mod server;
mod transport;

pub use crate::io::tls::certificate::Validity;
pub use crate::io::tls::client::{Client, ClientError, ClientFiles};
pub use crate::io::tls::error::{Failure, HandshakeError, TlsError};
pub use crate::io::tls::identity::Identity;
pub use crate::io::tls::pin::{Pin, PinError};
pub use crate::io::tls::server::{ClientCertificates, Files, Server, Warning};
pub use crate::io::tls::transport::Transport;

/// The protocol inside TLS (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

#[cfg(feature = "aws-lc-rs")]
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("TLS needs a cryptography: enable the feature `aws-lc-rs` (the default) or `ring`");

/// How long the other end may take to read the alert and to close the connection.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);

/// The most bytes that are read and dropped meanwhile.
const DRAIN_MAX: usize = 64 * 1024;

/// Finishes and closes a socket after its last bytes. It reads what is left first: closing with
/// unread bytes resets the connection, and the reset can overtake those bytes.
async fn release(socket: Socket) {
    let _ = socket.finish();
    let rest = async {
        let (mut buffer, mut left) = (ReadBuffer::default(), DRAIN_MAX);
        while let Ok(data) = socket.read(&mut buffer, left).await
            && !data.is_empty()
        {
            left -= data.len();
            if left == 0 {
                return;
            }
        }
    };
    // A peer that does not close in time is abandoned.
    let _ = timeout(RELEASE_TIMEOUT, rest).await;
}
