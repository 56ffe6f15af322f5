//! What HTTP and SOCKS5 proxies have in common: how one fails, and how bytes are sent to it.

use std::io;

use crate::io::socket::Socket;
use crate::uplink::proxy::Proxy;

/// Why a proxy gave no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("the proxy {0} ended the connection: {1}")]
    Io(String, io::Error),
    #[error(
        "the proxy {0} wants a user and a password, or other ones: write \
         USER:PASSWORD@ before its host into the variable that names it"
    )]
    Credentials(String),
    #[error("the proxy {0} refused: {1}")]
    Refused(String, u16),
    #[error("the proxy {0} does not answer as an HTTP proxy does")]
    Malformed(String),
    #[error("the proxy {0} does not answer as a SOCKS5 proxy does")]
    NotSocks(String),
    #[error("the proxy {0} refused: {2} ({1})")]
    SocksRefused(String, u8, &'static str),
}

/// Sends bytes to the proxy.
pub(super) async fn send(
    proxy: &Proxy,
    socket: &Socket,
    mut rest: &[u8],
) -> Result<(), TunnelError> {
    while !rest.is_empty() {
        let written = socket.write(rest).await;
        let written = written.map_err(|error| TunnelError::Io(proxy.to_string(), error))?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}
