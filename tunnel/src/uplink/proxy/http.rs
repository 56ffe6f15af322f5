//! A connection through an HTTP proxy: CONNECT (RFC 9110, section 9.3.6).

use std::io;

use tunnel_proto::target::Endpoint;

use crate::io::socket::{ReadBuffer, Socket};
use crate::uplink::proxy::Proxy;
use crate::uplink::proxy::exchange::{TunnelError, send};

/// The longest head of a proxy's response, in bytes.
const HEAD_MAX: usize = 8 * 1024;

/// Asks the proxy at the other end of `socket` for a connection to `server`.
pub(super) async fn connect(
    proxy: &Proxy,
    authorization: Option<&String>,
    socket: Socket,
    server: &Endpoint,
) -> Result<Socket, TunnelError> {
    let broken = |error| TunnelError::Io(proxy.to_string(), error);
    let authorization = match authorization {
        Some(credentials) => format!("Proxy-Authorization: {credentials}\r\n"),
        None => String::new(),
    };
    let request = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n{authorization}\r\n");
    send(proxy, &socket, request.as_bytes()).await?;
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

/// Returns where the head ends: behind an empty line. A line may end with a bare LF (RFC 9112,
/// section 2.2).
fn end_of_head(head: &[u8]) -> Option<usize> {
    let mut line_ends = (0..head.len()).filter(|at| head.get(*at) == Some(&b'\n'));
    line_ends.find_map(|at| match head.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Reads the status of `HTTP/1.x NNN ...` (RFC 9112, section 4).
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
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
    fn a_head_ends_with_an_empty_line() {
        for (head, end) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Some(19)),
            ("HTTP/1.1 200 OK\n\n", Some(17)),
            ("HTTP/1.1 200 OK\nVia: a\n\nrest", Some(24)),
            ("HTTP/1.1 200 OK\n\r\n", Some(18)),
            ("HTTP/1.1 200 OK\r\n\n", Some(18)),
            ("HTTP/1.1 200 OK\r\n\r", None),
            ("HTTP/1.1 200 OK\n", None),
            ("\r\r\r", None),
            ("", None),
        ] {
            assert_eq!(end_of_head(head.as_bytes()), end, "{head:?}");
            let status = status(head.as_bytes());
            assert_eq!(status, head.starts_with('H').then_some(200), "{head:?}");
        }
    }

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
