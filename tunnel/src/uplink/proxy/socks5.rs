//! A connection through a SOCKS5 proxy (RFC 1928, RFC 1929).

use std::net::IpAddr;

use tunnel_proto::target::Endpoint;

use crate::io::socket::{ReadBuffer, Socket};
use crate::uplink::proxy::exchange::{TunnelError, send};
use crate::uplink::proxy::{Login, Proxy};

const VERSION: u8 = 5;
const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
const LOGIN_VERSION: u8 = 1;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Asks the proxy at the other end of `socket` for a connection to `server`. The caller has the
/// deadline.
pub(super) async fn tunnel(
    proxy: &Proxy,
    login: Option<&Login>,
    socket: Socket,
    server: &Endpoint,
) -> Result<Socket, TunnelError> {
    let mut replies = Replies {
        proxy,
        socket: &socket,
        buffer: ReadBuffer::default(),
    };
    let greeting: &[u8] = match login {
        Some(_) => &[VERSION, 2, NO_LOGIN, LOGIN],
        None => &[VERSION, 1, NO_LOGIN],
    };
    send(proxy, &socket, greeting).await?;
    match (replies.next().await?, login) {
        ([VERSION, NO_LOGIN], _) => {}
        ([VERSION, LOGIN], Some(login)) => {
            send(proxy, &socket, &login_request(login)).await?;
            let [version, status] = replies.next().await?;
            if version != LOGIN_VERSION {
                return Err(TunnelError::NotSocks(proxy.to_string()));
            }
            if status != 0 {
                return Err(TunnelError::Credentials(proxy.to_string()));
            }
        }
        ([VERSION, _], _) => return Err(TunnelError::Credentials(proxy.to_string())),
        _ => return Err(TunnelError::NotSocks(proxy.to_string())),
    }
    send(proxy, &socket, &request(server)).await?;
    let [version, code, _, kind] = replies.next().await?;
    if version != VERSION {
        return Err(TunnelError::NotSocks(proxy.to_string()));
    }
    if code != 0 {
        let why = refusal(code);
        return Err(TunnelError::SocksRefused(proxy.to_string(), code, why));
    }
    // The address that the proxy has bound is of no use here.
    let length = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => {
            let [length] = replies.next().await?;
            length
        }
        _ => return Err(TunnelError::NotSocks(proxy.to_string())),
    };
    for _ in 0..length {
        let [_] = replies.next().await?;
    }
    let [_, _] = replies.next().await?;
    Ok(socket)
}

/// What the proxy sends, read to the byte: what follows is the server's.
struct Replies<'a> {
    proxy: &'a Proxy,
    socket: &'a Socket,
    buffer: ReadBuffer,
}

impl Replies<'_> {
    async fn next<const N: usize>(&mut self) -> Result<[u8; N], TunnelError> {
        let broken = |error| TunnelError::Io(self.proxy.to_string(), error);
        let mut reply = Vec::with_capacity(N);
        while reply.len() < N {
            let room = N - reply.len();
            let data = self.socket.read(&mut self.buffer, room).await;
            let data = data.map_err(broken)?;
            if data.is_empty() {
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            reply.extend_from_slice(&data);
        }
        reply
            .try_into()
            .map_err(|_| TunnelError::NotSocks(self.proxy.to_string()))
    }
}

/// RFC 1929, section 2. Both fields are 1 to 255 bytes long.
fn login_request(Login { user, password }: &Login) -> Vec<u8> {
    let mut request = vec![LOGIN_VERSION];
    for field in [user, password] {
        request.push(u8::try_from(field.len()).unwrap_or(u8::MAX));
        request.extend(field.bytes().take(u8::MAX.into()));
    }
    request
}

/// RFC 1928, section 4.
fn request(server: &Endpoint) -> Vec<u8> {
    let mut request = vec![VERSION, CONNECT, 0];
    match server.address() {
        Some(IpAddr::V4(address)) => {
            request.push(IPV4);
            request.extend(address.octets());
        }
        Some(IpAddr::V6(address)) => {
            request.push(IPV6);
            request.extend(address.octets());
        }
        None => {
            let name = server.host().bytes().take(u8::MAX.into());
            request.extend([NAME, u8::try_from(name.len()).unwrap_or(u8::MAX)]);
            request.extend(name);
        }
    }
    request.extend(server.port().to_be_bytes());
    request
}

/// RFC 1928, section 6.
const fn refusal(code: u8) -> &'static str {
    match code {
        2 => "not allowed by its rules",
        3 => "the network is unreachable",
        4 => "the host is unreachable",
        5 => "the connection was refused",
        6 => "the connection timed out",
        7 => "it takes no CONNECT",
        8 => "it does not take this kind of address",
        _ => "general failure",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written() {
        for (server, expected) in [
            ("192.0.2.1:80", &b"\x05\x01\0\x01\xc0\0\x02\x01\0\x50"[..]),
            ("a.example:443", b"\x05\x01\0\x03\x09a.example\x01\xbb"),
            (
                "[2001:db8::1]:1",
                b"\x05\x01\0\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\x01",
            ),
        ] {
            let server = Endpoint::parse(server, None).unwrap();
            assert_eq!(request(&server), expected, "{server}");
        }
        let login = Login {
            user: "user".to_owned(),
            password: "pass".to_owned(),
        };
        assert_eq!(login_request(&login), b"\x01\x04user\x04pass");
    }
}
