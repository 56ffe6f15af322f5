//! What a SOCKS5 visitor says until its request is known (RFC 1928, RFC 1929): bytes in, news out. No socket and no time.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf as _, Bytes, BytesMut};

use crate::mux::Reason;
use crate::server::port::Credentials;
use crate::target::Target;

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
pub(super) enum Code {
    Succeeded = 0,
    Failure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    Refused = 5,
    TtlExpired = 6,
    NoCommand = 7,
    NoAddressType = 8,
}

impl Code {
    /// Returns the answer. What the agent's end is called is nobody's business here, so the address is empty.
    pub(super) const fn reply(self) -> [u8; 10] {
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
pub(super) enum Event {
    /// The visitor is to be sent this, and goes on.
    Send([u8; 2]),
    /// The visitor asks for a stream. What it sent behind that is [`Greeting::into_rest`].
    Connect(Target),
    /// The visitor is to be sent this, and is over.
    Refuse(Refusal),
}

/// Why a visitor is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it does not speak SOCKS5")]
    NotSocks5,
    #[error("it knows no method of logging in that is taken here")]
    NoMethod,
    #[error("the name or the password is wrong")]
    Login,
    #[error("only CONNECT is served")]
    NoCommand,
    #[error("the type of the address is unknown")]
    NoAddressType,
    #[error("the address is not one")]
    BadAddress,
}

impl Refusal {
    /// Returns what the visitor is sent.
    pub(super) fn reply(self) -> Bytes {
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
    Request,
    Over,
}

/// A visitor that has not asked for its stream yet.
///
/// ```text
/// Methods ──► Request ──► Over        without credentials
/// Methods ──► Login ──► Request ──► Over
/// ```
/// Every state ends in Over when the visitor is refused.
#[derive(Debug)]
pub(super) struct Greeting<'a> {
    credentials: Option<&'a Credentials>,
    state: State,
    input: BytesMut,
}

impl<'a> Greeting<'a> {
    /// The longest message in bytes: a name and a password of 255 bytes each. What is kept is never longer than this and what
    /// was handed over last.
    #[cfg(test)]
    pub(super) const MESSAGE_MAX: usize = 3 + 2 * 255;

    pub(super) fn new(credentials: Option<&'a Credentials>) -> Self {
        Self {
            credentials,
            state: State::Methods,
            input: BytesMut::new(),
        }
    }

    /// Takes bytes of the visitor. [`Self::poll`] must be asked until it has nothing left.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Returns what the visitor sent behind its request.
    pub(super) fn into_rest(self) -> Bytes {
        self.input.freeze()
    }

    /// Returns what comes of the bytes so far; `None` if that takes more of them.
    pub(super) fn poll(&mut self) -> Option<Event> {
        let event = match self.state {
            State::Methods => self.methods(),
            State::Login => self.login(),
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
        let (method, next) = match self.credentials {
            Some(_) => (LOGIN, State::Login),
            None => (NO_LOGIN, State::Request),
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
        let user = self.input.get(2..user_end)?;
        let password = self.input.get(user_end + 1..end)?;
        let accepted = self
            .credentials
            .is_some_and(|credentials| credentials.accept(user, password));
        if !accepted {
            return Some(Event::Refuse(Refusal::Login));
        }
        self.input.advance(end);
        self.state = State::Request;
        Some(Event::Send([LOGIN_VERSION, 0]))
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credentials() -> Credentials {
        Credentials::new("anna", "secret").unwrap()
    }

    /// Hands `bytes` over in pieces that end at `cuts`, and returns all news and what is left.
    fn run(credentials: Option<&Credentials>, bytes: &[u8], cuts: &[usize]) -> (Vec<Event>, Bytes) {
        let mut greeting = Greeting::new(credentials);
        let mut events = Vec::new();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        for piece in cuts.windows(2) {
            greeting.receive(&bytes[piece[0]..piece[1]]);
            while let Some(event) = greeting.poll() {
                events.push(event);
            }
            let over = matches!(events.last(), Some(Event::Connect(_) | Event::Refuse(_)));
            assert!(over || greeting.input.len() < Greeting::MESSAGE_MAX);
        }
        (events, greeting.into_rest())
    }

    fn connect(target: &str) -> Event {
        Event::Connect(target.parse().unwrap())
    }

    #[test]
    fn addresses_and_names_become_targets() {
        let methods = [5, 2, 1, 0];
        let mut name = vec![5, 1, 0, 3, 11];
        name.extend_from_slice(b"DB.internal\x01\xbb");
        let mut literal = vec![5, 1, 0, 3, 3];
        literal.extend_from_slice(b"::1\x00\x50");
        let mut v6 = vec![5, 1, 0, 4];
        v6.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
        v6.extend_from_slice(&[0, 80]);
        for (request, target) in [
            (
                vec![5, 1, 0, 1, 10, 0, 0, 7, 0x1f, 0x90],
                "tcp/10.0.0.7:8080",
            ),
            (name, "tcp/db.internal:443"),
            (literal, "tcp/[::1]:80"),
            (v6, "tcp/[::1]:80"),
        ] {
            let (events, rest) = run(None, &[&methods[..], &request, b"early"].concat(), &[]);
            assert_eq!(events, [Event::Send([5, 0]), connect(target)]);
            assert_eq!(rest, &b"early"[..]);
        }
    }

    #[test]
    fn what_cannot_be_served_is_answered_as_the_rfc_says() {
        let whole = |request: &[u8]| [&[5, 1, 0][..], request].concat();
        for (bytes, refusal, reply) in [
            (vec![4, 1], Refusal::NotSocks5, vec![]),
            (b"GET / HTTP/1.1".to_vec(), Refusal::NotSocks5, vec![]),
            (vec![5, 0], Refusal::NoMethod, vec![5, 0xff]),
            (vec![5, 2, 1, 2], Refusal::NoMethod, vec![5, 0xff]),
            (
                whole(&[5, 2, 0, 1]),
                Refusal::NoCommand,
                Code::NoCommand.reply().to_vec(),
            ),
            (
                whole(&[5, 3, 0, 1]),
                Refusal::NoCommand,
                Code::NoCommand.reply().to_vec(),
            ),
            (
                whole(&[5, 1, 0, 2]),
                Refusal::NoAddressType,
                Code::NoAddressType.reply().to_vec(),
            ),
            (
                whole(&[5, 1, 0, 1, 1, 2, 3, 4, 0, 0]),
                Refusal::BadAddress,
                Code::Failure.reply().to_vec(),
            ),
            (
                whole(&[5, 1, 0, 3, 0, 0, 80]),
                Refusal::BadAddress,
                Code::Failure.reply().to_vec(),
            ),
            (
                whole(&[5, 1, 0, 3, 2, 0xff, 0xfe, 0, 80]),
                Refusal::BadAddress,
                Code::Failure.reply().to_vec(),
            ),
            (
                whole(&[5, 1, 0, 3, 3, b'a', b':', b'1', 0, 80]),
                Refusal::BadAddress,
                Code::Failure.reply().to_vec(),
            ),
            (whole(&[1]), Refusal::NotSocks5, vec![]),
        ] {
            let (events, _) = run(None, &bytes, &[]);
            assert_eq!(events.last(), Some(&Event::Refuse(refusal)), "{bytes:?}");
            assert_eq!(refusal.reply(), reply);
        }
    }

    #[test]
    fn with_credentials_nothing_else_is_taken() {
        let credentials = credentials();
        let refused = |bytes: &[u8], refusal| {
            let (events, _) = run(Some(&credentials), bytes, &[]);
            assert_eq!(events.last(), Some(&Event::Refuse(refusal)), "{bytes:?}");
        };
        refused(&[5, 1, 0], Refusal::NoMethod);
        refused(b"\x05\x01\x02\x01\x04anna\x05secre", Refusal::Login);
        refused(b"\x05\x01\x02\x01\x00\x00", Refusal::Login);
        refused(b"\x05\x01\x02\x05\x01\x00\x01", Refusal::Login);
        let (events, _) = run(
            Some(&credentials),
            b"\x05\x02\x00\x02\x01\x04anna\x06secret\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50",
            &[],
        );
        let expected = [
            Event::Send([5, 2]),
            Event::Send([1, 0]),
            connect("tcp/1.2.3.4:80"),
        ];
        assert_eq!(events, expected);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            login: bool,
            user in proptest::collection::vec(any::<u8>(), 0..255),
            name in "[a-z0-9.:-]{0,255}",
            early in proptest::collection::vec(any::<u8>(), 0..64),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let credentials = credentials();
            let mut bytes = vec![5, 2, 0, 2];
            if login {
                let (user, password) = if user.len() % 2 == 0 { (&b"anna"[..], &b"secret"[..]) } else { (&user[..], &user[..]) };
                bytes.extend([1, u8::try_from(user.len()).unwrap()]);
                bytes.extend(user);
                bytes.push(u8::try_from(password.len()).unwrap());
                bytes.extend(password);
            }
            bytes.extend([5, 1, 0, 3, u8::try_from(name.len()).unwrap()]);
            bytes.extend(name.as_bytes());
            bytes.extend([1, 1]);
            bytes.extend(&early);
            let credentials = login.then_some(&credentials);
            let (events, rest) = run(credentials, &bytes, &[]);
            let in_pieces = run(credentials, &bytes, &cuts);
            prop_assert_eq!(&events, &in_pieces.0);
            if matches!(events.last(), Some(Event::Connect(_))) {
                prop_assert_eq!(&rest, &early);
                prop_assert_eq!(&rest, &in_pieces.1);
            }
        }

        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..600), cuts in proptest::collection::vec(any::<usize>(), 0..4), login: bool) {
            let credentials = credentials();
            run(login.then_some(&credentials), &bytes, &cuts);
        }
    }
}
