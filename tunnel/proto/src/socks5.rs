//! What a SOCKS visitor says until its request is known: bytes in, events out. No socket and no
//! time. SOCKS5 (RFC 1928, RFC 1929), and SOCKS4 with its extension 4a where no login is needed.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::mux::Reason;
use crate::socks5::address::Address;
use crate::target::Target;

mod address;
pub mod datagram;
mod v4;

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
const ASSOCIATE: u8 = 3;

/// The version of the protocol that a visitor speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// SOCKS4 or 4a.
    V4,
    /// SOCKS5.
    #[default]
    V5,
}

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
    #[must_use]
    pub fn reply(self, version: Version) -> Bytes {
        match version {
            Version::V4 => v4::reply(self),
            Version::V5 => self.reply_with(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)),
        }
    }

    /// Returns the answer of SOCKS5 with an address.
    #[must_use]
    pub fn reply_with(self, address: SocketAddr) -> Bytes {
        let mut reply = BytesMut::new();
        reply.put_slice(&[VERSION, self as u8, 0]);
        Address::put_ip(address.ip(), address.port(), &mut reply);
        reply.freeze()
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
    /// The visitor asks for an association of datagrams (UDP ASSOCIATE), which it will send from
    /// this address: `None` if it does not say, and an unspecified one if it says the port only.
    Associate(Option<SocketAddr>),
    /// The visitor is to be sent this, and is over.
    Refuse(Refusal),
}

/// Why a visitor is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not speak SOCKS.
    #[error("it does not speak SOCKS5 or SOCKS4")]
    NotSocks,
    /// It speaks SOCKS4, which has no passwords, where a login is needed.
    #[error("SOCKS4 has no login, and this port needs one")]
    NeedsLogin,
    /// It knows no method of logging in that is taken here.
    #[error("it knows no method of logging in that is taken here")]
    NoMethod,
    /// The name or the password is wrong.
    #[error("the name or the password is wrong")]
    Login,
    /// It asks for another command than CONNECT and UDP ASSOCIATE.
    #[error("only CONNECT and UDP ASSOCIATE are served, and of SOCKS4 only CONNECT")]
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
    pub fn reply(self, version: Version) -> Bytes {
        match self {
            Self::NotSocks => Bytes::new(),
            Self::NoMethod => Bytes::from_static(&[VERSION, NO_METHOD]),
            Self::Login => Bytes::from_static(&[LOGIN_VERSION, 1]),
            Self::NeedsLogin => Code::NotAllowed.reply(version),
            Self::NoCommand => Code::NoCommand.reply(version),
            Self::NoAddressType => Code::NoAddressType.reply(version),
            Self::BadAddress => Code::Failure.reply(version),
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
/// Methods ──► Over                    SOCKS4
/// ```
/// Every state ends in Over when the visitor is refused.
#[derive(Debug)]
pub struct Greeting {
    needs_login: bool,
    version: Version,
    user_id: Bytes,
    state: State,
    input: BytesMut,
}

impl Greeting {
    /// The longest message in bytes: a request of SOCKS4a with a user and a host of 255 bytes each.
    /// What is kept is never longer than this and what was handed over last.
    #[cfg(test)]
    pub const MESSAGE_MAX: usize = 8 + 2 * 256;

    /// Starts with nothing read.
    #[must_use]
    pub fn new(needs_login: bool) -> Self {
        Self {
            needs_login,
            version: Version::default(),
            user_id: Bytes::new(),
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

    /// Returns the version that the visitor speaks, once it has said anything.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Returns the user id of SOCKS4. Nothing proves it.
    #[must_use]
    pub const fn user_id(&self) -> &Bytes {
        &self.user_id
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
        if matches!(
            event,
            Some(Event::Connect(_) | Event::Associate(_) | Event::Refuse(_))
        ) {
            self.state = State::Over;
        }
        event
    }

    fn methods(&mut self) -> Option<Event> {
        match *self.input.first()? {
            VERSION => {}
            v4::VERSION => {
                self.version = Version::V4;
                return self.request_v4();
            }
            _ => return Some(Event::Refuse(Refusal::NotSocks)),
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
            return Some(Event::Refuse(Refusal::NotSocks));
        }
        let command = *self.input.get(1)?;
        if !matches!(command, CONNECT | ASSOCIATE) {
            return Some(Event::Refuse(Refusal::NoCommand));
        }
        let Ok(address) = Address::read(self.input.get(3..)?)? else {
            return Some(Event::Refuse(Refusal::NoAddressType));
        };
        let event = if command == ASSOCIATE {
            Event::Associate(address.source())
        } else {
            match address.endpoint() {
                Some(endpoint) => Event::Connect(Target::Tcp(endpoint)),
                None => return Some(Event::Refuse(Refusal::BadAddress)),
            }
        };
        let end = 3 + address.length();
        self.input.advance(end);
        Some(event)
    }
}
