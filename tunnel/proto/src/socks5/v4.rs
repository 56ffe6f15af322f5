//! SOCKS4 and its extension 4a, in which a name stands for the address
//! (<https://www.openssh.com/txt/socks4.protocol>, <https://www.openssh.com/txt/socks4a.protocol>).

use std::net::Ipv4Addr;

use bytes::{Buf as _, Bytes};

use crate::socks5::address::Address;
use crate::socks5::{CONNECT, Code, Event, Greeting, Refusal};
use crate::target::Target;

/// The version that a request begins with.
pub(super) const VERSION: u8 = 4;

const GRANTED: u8 = 90;
const REJECTED: u8 = 91;

/// The longest user id and the longest name in bytes.
const TEXT_MAX: usize = 255;

/// Returns the answer.
pub(super) fn reply(code: Code) -> Bytes {
    let code = match code {
        Code::Succeeded => GRANTED,
        Code::Failure
        | Code::NotAllowed
        | Code::NetworkUnreachable
        | Code::HostUnreachable
        | Code::Refused
        | Code::TtlExpired
        | Code::NoCommand
        | Code::NoAddressType => REJECTED,
    };
    Bytes::copy_from_slice(&[0, code, 0, 0, 0, 0, 0, 0])
}

/// Returns where the text from `start` ends, before its NUL; `None` if that takes more bytes.
fn text_end(input: &[u8], start: usize) -> Option<Result<usize, Refusal>> {
    let text = input.get(start..)?;
    let end = text.iter().take(TEXT_MAX + 1).position(|byte| *byte == 0);
    match end {
        Some(length) => Some(Ok(start + length)),
        None if text.len() > TEXT_MAX => Some(Err(Refusal::BadAddress)),
        None => None,
    }
}

impl Greeting {
    pub(super) fn request_v4(&mut self) -> Option<Event> {
        if self.needs_login {
            return Some(Event::Refuse(Refusal::NeedsLogin));
        }
        if *self.input.get(1)? != CONNECT {
            return Some(Event::Refuse(Refusal::NoCommand));
        }
        let port = u16::from_be_bytes(self.input.get(2..4)?.try_into().ok()?);
        let ip = <[u8; 4]>::try_from(self.input.get(4..8)?).ok()?;
        let user_end = match text_end(&self.input, 8)? {
            Ok(end) => end,
            Err(refusal) => return Some(Event::Refuse(refusal)),
        };
        let is_named = matches!(ip, [0, 0, 0, last] if last != 0);
        let (address, end) = if is_named {
            let start = user_end + 1;
            let end = match text_end(&self.input, start)? {
                Ok(end) => end,
                Err(refusal) => return Some(Event::Refuse(refusal)),
            };
            (Address::name(self.input.get(start..end)?, port), end)
        } else {
            (Address::ip(Ipv4Addr::from(ip).into(), port), user_end)
        };
        let Some(endpoint) = address.endpoint() else {
            return Some(Event::Refuse(Refusal::BadAddress));
        };
        self.user_id = Bytes::copy_from_slice(self.input.get(8..user_end)?);
        self.input.advance(end + 1);
        Some(Event::Connect(Target::Tcp(endpoint)))
    }
}
