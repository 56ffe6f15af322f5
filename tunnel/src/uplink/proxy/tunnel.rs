//! A connection through a proxy.

use std::io;

use tunnel_proto::target::Endpoint;

use crate::io::socket::{ReadBuffer, Socket};
use crate::uplink::proxy::Proxy;

/// The longest head of a proxy's response, in bytes.
const HEAD_MAX: usize = 8 * 1024;

/// Why a proxy gave no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("the proxy {0} ended the connection: {1}")]
    Io(String, io::Error),
    #[error(
        "the proxy {0} wants a user and a password, or other ones: write \
         http://USER:PASSWORD@HOST:PORT into the variable that names it"
    )]
    Credentials(String),
    #[error("the proxy {0} refused: {1}")]
    Refused(String, u16),
    #[error("the proxy {0} does not answer as an HTTP proxy does")]
    Malformed(String),
}

/// Asks the proxy at the other end of `socket` for a connection to `server`. The caller has the
/// deadline.
pub(crate) async fn tunnel(
    proxy: &Proxy,
    socket: Socket,
    server: &Endpoint,
) -> Result<Socket, TunnelError> {
    let broken = |error| TunnelError::Io(proxy.to_string(), error);
    let authorization = match &proxy.authorization {
        Some(credentials) => format!("Proxy-Authorization: {credentials}\r\n"),
        None => String::new(),
    };
    let request = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n{authorization}\r\n");
    let mut rest = request.as_bytes();
    while !rest.is_empty() {
        let written = socket.write(rest).await.map_err(broken)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    let (mut buffer, mut head) = (ReadBuffer::default(), Vec::new());
    let end = loop {
        if let Some(end) = end_of_head(&head) {
            break end;
        }
        if head.len() >= HEAD_MAX {
            return Err(TunnelError::Malformed(proxy.to_string()));
        }
        let room = HEAD_MAX - head.len();
        let data = socket.read(&mut buffer, room).await.map_err(broken)?;
        if data.is_empty() {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        head.extend_from_slice(&data);
    };
    match status(&head) {
        // The server speaks second: what came already is not its.
        Some(200..=299) if end == head.len() => Ok(socket),
        Some(200..=299) | None => Err(TunnelError::Malformed(proxy.to_string())),
        Some(407) => Err(TunnelError::Credentials(proxy.to_string())),
        Some(status) => Err(TunnelError::Refused(proxy.to_string(), status)),
    }
}

fn end_of_head(head: &[u8]) -> Option<usize> {
    let at = head.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    Some(at + 4)
}

/// Reads the status of `HTTP/1.x NNN ...` (RFC 9112, section 4).
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let rest = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, phrase) = rest.split_at_checked(3)?;
    let is_line =
        digits.iter().all(u8::is_ascii_digit) && matches!(phrase.first(), None | Some(b' '));
    is_line.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read() {
        for (line, expected) in [
            ("HTTP/1.1 200 Connection established", Some(200)),
            ("HTTP/1.0 200", Some(200)),
            ("HTTP/1.1 407 ", Some(407)),
            ("HTTP/2 200", None),
            ("HTTP/1.1 2000", None),
            ("HTTP/1.1 20", None),
            ("HTTP/1.1 +20", None),
            ("ICY 200 OK", None),
            ("", None),
        ] {
            assert_eq!(
                status(format!("{line}\r\n\r\n").as_bytes()),
                expected,
                "{line}"
            );
        }
    }
}
