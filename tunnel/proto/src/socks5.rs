//! What a SOCKS5 visitor says until its request is known (RFC 1928, RFC 1929): bytes in, events
//! out. No socket and no time.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf as _, Bytes, BytesMut};

use crate::mux::Reason;
use crate::target::Target;

#[cfg(test)]
mod tests;

/// The version that every message but that of the password begins with.
const VERSION: u8 = 5;

/// The version of the message with the password (RFC 1929, section 2).
const LOGIN_VERSION: u8 = 1;

/// Methods (RFC 1928, section 3).
const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
const NO_METHOD: u8 = 0xff;

const CONNECT: u8 = 1;

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// How a request is answered (RFC 1928, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The stream is open.
    Succeeded = 0,
    /// Something else went wrong.
    Failure = 1,
    /// A rule does not allow the target.
    NotAllowed = 2,
    /// There is no route.
    NetworkUnreachable = 3,
    /// The host does not answer or has no address.
    HostUnreachable = 4,
    /// The target refused the connection.
    Refused = 5,
    /// The target did not answer in time.
    TtlExpired = 6,
    /// The command is not served.
    NoCommand = 7,
    /// The type of the address is unknown.
    NoAddressType = 8,
}

impl Code {
    /// Returns the answer. What the agent's end is called is nobody's business here, so the address
    /// is empty.
    pub const fn reply(self) -> [u8; 10] {
        [VERSION, self as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]
    }
}

impl From<Reason> for Code {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Denied => Self::NotAllowed,
            Reason::Unreachable => Self::NetworkUnreachable,
            Reason::Unresolved => Self::HostUnreachable,
            Reason::Refused => Self::Refused,
            Reason::TimedOut => Self::TtlExpired,
            Reason::Done
            | Reason::Cancelled
            | Reason::Aborted
            | Reason::Busy
            | Reason::Draining
            | Reason::SessionOver
            | Reason::Replaced
            | Reason::Protocol
            | Reason::Overrun => Self::Failure,
        }
    }
}

/// What comes of the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The visitor is to be sent this, and goes on.
    Send([u8; 2]),
    /// The visitor logs in. Nothing more comes until [`Greeting::judge_login`] is called.
    Login {
        /// The name.
        user: Bytes,
        /// The password.
        password: Bytes,
    },
    /// The visitor asks for a stream. What it sent behind that is [`Greeting::into_rest`].
    Connect(Target),
    /// The visitor is to be sent this, and is over.
    Refuse(Refusal),
}

/// Why a visitor is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not speak SOCKS5.
    #[error("it does not speak SOCKS5")]
    NotSocks5,
    /// It knows no method of logging in that is taken here.
    #[error("it knows no method of logging in that is taken here")]
    NoMethod,
    /// The name or the password is wrong.
    #[error("the name or the password is wrong")]
    Login,
    /// It asks for another command than CONNECT.
    #[error("only CONNECT is served")]
    NoCommand,
    /// The type of the address is unknown.
    #[error("the type of the address is unknown")]
    NoAddressType,
    /// The address is not one.
    #[error("the address is not one")]
    BadAddress,
}

impl Refusal {
    /// Returns what the visitor is sent.
    #[must_use]
    pub fn reply(self) -> Bytes {
        match self {
            Self::NotSocks5 => Bytes::new(),
            Self::NoMethod => Bytes::from_static(&[VERSION, NO_METHOD]),
            Self::Login => Bytes::from_static(&[LOGIN_VERSION, 1]),
            Self::NoCommand => Bytes::copy_from_slice(&Code::NoCommand.reply()),
            Self::NoAddressType => Bytes::copy_from_slice(&Code::NoAddressType.reply()),
            Self::BadAddress => Bytes::copy_from_slice(&Code::Failure.reply()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Methods,
    Login,
    /// Whether the login is accepted, once that is known.
    Judged(Option<bool>),
    Request,
    Over,
}

/// A visitor that has not asked for its stream yet.
///
/// ```text
/// Methods ──► Request ──► Over        without a login
/// Methods ──► Login ──► Judged ──► Request ──► Over
/// ```
/// Every state ends in Over when the visitor is refused.
#[derive(Debug)]
pub struct Greeting {
    needs_login: bool,
    state: State,
    input: BytesMut,
}

impl Greeting {
    /// The longest message in bytes: a name and a password of 255 bytes each. What is kept is never
    /// longer than this and what was handed over last.
    #[cfg(test)]
    pub const MESSAGE_MAX: usize = 3 + 2 * 255;

    /// Starts with nothing read.
    #[must_use]
    pub fn new(needs_login: bool) -> Self {
        Self {
            needs_login,
            state: State::Methods,
            input: BytesMut::new(),
        }
    }

    /// Takes bytes of the visitor. [`Self::poll`] must be asked until it has nothing left.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Says whether the login of [`Event::Login`] is accepted.
    pub const fn judge_login(&mut self, accepted: bool) {
        if let State::Judged(judged) = &mut self.state {
            *judged = Some(accepted);
        }
    }

    /// Returns what the visitor sent behind its request.
    pub fn into_rest(self) -> Bytes {
        self.input.freeze()
    }

    /// Returns what comes of the bytes so far; `None` if that takes more of them.
    pub fn poll(&mut self) -> Option<Event> {
        let event = match self.state {
            State::Methods => self.methods(),
            State::Login => self.login(),
            State::Judged(None) => None,
            State::Judged(Some(false)) => Some(Event::Refuse(Refusal::Login)),
            State::Judged(Some(true)) => {
                self.state = State::Request;
                Some(Event::Send([LOGIN_VERSION, 0]))
            }
            State::Request => self.request(),
            State::Over => None,
        };
        if matches!(event, Some(Event::Connect(_) | Event::Refuse(_))) {
            self.state = State::Over;
        }
        event
    }

    fn methods(&mut self) -> Option<Event> {
        if *self.input.first()? != VERSION {
            return Some(Event::Refuse(Refusal::NotSocks5));
        }
        let count = usize::from(*self.input.get(1)?);
        let methods = self.input.get(2..2 + count)?;
        let (method, next) = if self.needs_login {
            (LOGIN, State::Login)
        } else {
            (NO_LOGIN, State::Request)
        };
        if !methods.contains(&method) {
            return Some(Event::Refuse(Refusal::NoMethod));
        }
        self.input.advance(2 + count);
        self.state = next;
        Some(Event::Send([VERSION, method]))
    }

    fn login(&mut self) -> Option<Event> {
        if *self.input.first()? != LOGIN_VERSION {
            return Some(Event::Refuse(Refusal::Login));
        }
        let user_end = 2 + usize::from(*self.input.get(1)?);
        let end = user_end + 1 + usize::from(*self.input.get(user_end)?);
        let user = Bytes::copy_from_slice(self.input.get(2..user_end)?);
        let password = Bytes::copy_from_slice(self.input.get(user_end + 1..end)?);
        self.input.advance(end);
        self.state = State::Judged(None);
        Some(Event::Login { user, password })
    }

    fn request(&mut self) -> Option<Event> {
        if *self.input.first()? != VERSION {
            return Some(Event::Refuse(Refusal::NotSocks5));
        }
        if *self.input.get(1)? != CONNECT {
            return Some(Event::Refuse(Refusal::NoCommand));
        }
        let (host, end) = match *self.input.get(3)? {
            IPV4 => (4..8, 8),
            IPV6 => (4..20, 20),
            NAME => {
                let end = 5 + usize::from(*self.input.get(4)?);
                (5..end, end)
            }
            _ => return Some(Event::Refuse(Refusal::NoAddressType)),
        };
        let port = self.input.get(end..end + 2)?.try_into().ok()?;
        let target = target(
            self.input.get(host)?,
            *self.input.get(3)?,
            u16::from_be_bytes(port),
        );
        let Some(target) = target else {
            return Some(Event::Refuse(Refusal::BadAddress));
        };
        self.input.advance(end + 2);
        Some(Event::Connect(target))
    }
}

/// Returns the target; a name is the agent's to resolve.
fn target(host: &[u8], kind: u8, port: u16) -> Option<Target> {
    let authority = match kind {
        NAME => {
            let name = std::str::from_utf8(host).ok()?;
            // Some write an address as a name.
            match name.parse::<Ipv6Addr>() {
                Ok(address) => SocketAddr::new(address.into(), port).to_string(),
                Err(_) => format!("{name}:{port}"),
            }
        }
        IPV4 => SocketAddr::new(Ipv4Addr::from(<[u8; 4]>::try_from(host).ok()?).into(), port)
            .to_string(),
        _ => SocketAddr::new(
            Ipv6Addr::from(<[u8; 16]>::try_from(host).ok()?).into(),
            port,
        )
        .to_string(),
    };
    Target::tcp(&authority, None).ok()
}
