//! The dialect of remotedialer: one message a binary WebSocket message, so that its Go programs can
//! be the other end.
//!
//! A message is three numbers (`id`, connection, type), one more for data and connect (a deadline
//! in milliseconds that nobody uses any more), then a body up to the end of the WebSocket message.
//! Numbers are zig-zag LEB128 varints of 64 bits, as Go's `binary.PutVarint` writes them. The `id`
//! counts messages and is for logs only.
//!
//! | type | message | body |
//! |---|---|---|
//! | 1 | data | bytes |
//! | 2 | connect | `proto/address` |
//! | 3 | error | text; `EOF` is the graceful end |
//! | 4 | add-client | `clientKey/sessionKey` |
//! | 5 | remove-client | `clientKey/sessionKey` |
//! | 6 | pause | none |
//! | 7 | resume | none |
//! | 8 | sync-connections | connections, 8 bytes little-endian each |

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest `proto/address` of a connect, in bytes.
pub const ADDRESS_MAX: usize = 266;

/// The most bytes of an error's text, or of a client's key, that are read.
pub const TEXT_MAX: usize = 100;

/// The text of an error that is none: the connection is over and everything was sent.
pub const EOF: &[u8] = b"EOF";

/// The deadline that data and connect carry, in milliseconds.
const DEADLINE_MS: i64 = 15_000;

mod kind {
    pub(super) const DATA: i64 = 1;
    pub(super) const CONNECT: i64 = 2;
    pub(super) const ERROR: i64 = 3;
    pub(super) const ADD_CLIENT: i64 = 4;
    pub(super) const REMOVE_CLIENT: i64 = 5;
    pub(super) const PAUSE: i64 = 6;
    pub(super) const RESUME: i64 = 7;
    pub(super) const SYNC_CONNECTIONS: i64 = 8;
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The connection that it is about; 0 when it is about none.
    pub connection: i64,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Bytes of the connection.
    Data(Bytes),
    /// Start the connection by dialing `proto/address`. The reader decides what is longer than
    /// [`ADDRESS_MAX`].
    Connect(Bytes),
    /// The connection is over. At most [`TEXT_MAX`] bytes; the rest of a longer text is dropped.
    Error(Bytes),
    /// Between servers: a client is reachable through the sender.
    AddClient(Bytes),
    /// Between servers: a client no longer is.
    RemoveClient(Bytes),
    /// Send no data of the connection.
    Pause,
    /// Go on.
    Resume,
    /// These connections live at the sender.
    SyncConnections(Vec<i64>),
    /// A later version's type, to be ignored.
    Unknown(i64),
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends within its numbers.
    #[error("a message is cut short")]
    Short,
    /// A number has more than 64 bits.
    #[error("a number is too large")]
    NumberTooLarge,
    /// A list of connections is no multiple of 8 bytes.
    #[error("a list of connections is cut short")]
    ListCutShort,
}

/// Appends `message`, the sender's `id`-th, to `out`.
pub fn encode(id: i64, message: &Message, out: &mut BytesMut) {
    let head = |out: &mut BytesMut, kind| {
        put_number(out, id);
        put_number(out, message.connection);
        put_number(out, kind);
    };
    match &message.body {
        Body::Data(data) => {
            head(out, kind::DATA);
            put_number(out, DEADLINE_MS);
            out.extend_from_slice(data);
        }
        Body::Connect(address) => {
            head(out, kind::CONNECT);
            put_number(out, DEADLINE_MS);
            out.extend_from_slice(address);
        }
        Body::Error(text) => {
            head(out, kind::ERROR);
            out.extend_from_slice(text);
        }
        Body::AddClient(client) => {
            head(out, kind::ADD_CLIENT);
            out.extend_from_slice(client);
        }
        Body::RemoveClient(client) => {
            head(out, kind::REMOVE_CLIENT);
            out.extend_from_slice(client);
        }
        Body::Pause => head(out, kind::PAUSE),
        Body::Resume => head(out, kind::RESUME),
        Body::SyncConnections(connections) => {
            head(out, kind::SYNC_CONNECTIONS);
            out.reserve(8 * connections.len());
            for connection in connections {
                out.put_i64_le(*connection);
            }
        }
        Body::Unknown(kind) => head(out, *kind),
    }
}

/// Reads the one message that `bytes` are.
///
/// # Errors
///
/// [`DecodeError`] when they are none.
pub fn decode(mut bytes: Bytes) -> Result<Message, DecodeError> {
    let _id = number(&mut bytes)?;
    let connection = number(&mut bytes)?;
    let body = match number(&mut bytes)? {
        kind::DATA => {
            number(&mut bytes)?;
            Body::Data(bytes)
        }
        kind::CONNECT => {
            number(&mut bytes)?;
            Body::Connect(bytes)
        }
        kind::ERROR => Body::Error(text(bytes)),
        kind::ADD_CLIENT => Body::AddClient(text(bytes)),
        kind::REMOVE_CLIENT => Body::RemoveClient(text(bytes)),
        kind::PAUSE => Body::Pause,
        kind::RESUME => Body::Resume,
        kind::SYNC_CONNECTIONS => {
            let mut connections = Vec::with_capacity(bytes.len() / 8);
            while !bytes.is_empty() {
                let connection = bytes.try_get_i64_le();
                connections.push(connection.map_err(|_| DecodeError::ListCutShort)?);
            }
            Body::SyncConnections(connections)
        }
        unknown => Body::Unknown(unknown),
    };
    Ok(Message { connection, body })
}

fn text(mut bytes: Bytes) -> Bytes {
    bytes.truncate(TEXT_MAX);
    bytes
}

fn number(bytes: &mut Bytes) -> Result<i64, DecodeError> {
    let mut zigzag = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = bytes.try_get_u8().map_err(|_| DecodeError::Short)?;
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits {
            return Err(DecodeError::NumberTooLarge);
        }
        zigzag |= bits << shift;
        if byte & 0x80 == 0 {
            let magnitude = (zigzag >> 1).cast_signed();
            return Ok(if zigzag & 1 == 0 {
                magnitude
            } else {
                !magnitude
            });
        }
    }
    Err(DecodeError::NumberTooLarge)
}

fn put_number(out: &mut BytesMut, number: i64) {
    let mut zigzag = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while zigzag >= 0x80 {
        out.put_u8(u8::try_from(zigzag & 0x7f).unwrap_or(0) | 0x80);
        zigzag >>= 7;
    }
    out.put_u8(u8::try_from(zigzag).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(connection: i64, body: Body) -> Message {
        Message { connection, body }
    }

    /// Each message as a Go program writes it.
    fn vectors() -> Vec<(i64, Message, Vec<u8>)> {
        let join = |head: &[u8], body: &[u8]| [head, body].concat();
        let text = Bytes::from_static;
        vec![
            // 15000 ms is 30000 in zig-zag: 0xb0 0xea 0x01.
            (
                1,
                message(2, Body::Data(text(b"hi"))),
                join(&[2, 4, 2, 0xb0, 0xea, 1], b"hi"),
            ),
            (
                2,
                message(2, Body::Connect(text(b"tcp/127.0.0.1:80"))),
                join(&[4, 4, 4, 0xb0, 0xea, 1], b"tcp/127.0.0.1:80"),
            ),
            (
                3,
                message(2, Body::Error(text(EOF))),
                join(&[6, 4, 6], b"EOF"),
            ),
            (
                4,
                message(0, Body::AddClient(text(b"web/7"))),
                join(&[8, 0, 8], b"web/7"),
            ),
            (
                5,
                message(0, Body::RemoveClient(text(b"web/7"))),
                join(&[10, 0, 10], b"web/7"),
            ),
            (6, message(64, Body::Pause), vec![12, 0x80, 1, 12]),
            (-1, message(-64, Body::Resume), vec![1, 127, 14]),
            (
                i64::MIN,
                message(0, Body::SyncConnections(vec![2, 258])),
                join(
                    &[
                        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 16,
                    ],
                    &[2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0],
                ),
            ),
            (0, message(1, Body::Unknown(9)), vec![0, 2, 18]),
        ]
    }

    #[test]
    fn messages_are_the_bytes_that_a_go_program_writes_and_reads() {
        for (id, message, bytes) in vectors() {
            let mut encoded = BytesMut::new();
            encode(id, &message, &mut encoded);
            assert_eq!(encoded, bytes, "{message:?}");
            assert_eq!(decode(bytes.into()), Ok(message));
        }
    }

    #[test]
    fn malformed_messages_are_named() {
        for (bytes, error) in [
            (&[][..], DecodeError::Short),
            (&[2, 4], DecodeError::Short),
            (&[2, 4, 2], DecodeError::Short),
            (&[2, 0x80], DecodeError::Short),
            (&[0xff; 11], DecodeError::NumberTooLarge),
            (
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
                DecodeError::NumberTooLarge,
            ),
            (&[2, 0, 16, 1, 2, 3], DecodeError::ListCutShort),
        ] {
            assert_eq!(
                decode(Bytes::copy_from_slice(bytes)),
                Err(error),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn of_a_long_text_the_beginning_is_read() {
        let mut bytes = vec![2, 4, 6];
        bytes.resize(3 + 1000, b'x');
        let Ok(Message {
            body: Body::Error(text),
            ..
        }) = decode(bytes.into())
        else {
            panic!("not an error");
        };
        assert_eq!(text.len(), TEXT_MAX);
    }

    fn bodies() -> impl Strategy<Value = Body> {
        let bytes = |max| prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
        prop_oneof![
            bytes(3000).prop_map(Body::Data),
            bytes(ADDRESS_MAX).prop_map(Body::Connect),
            bytes(TEXT_MAX).prop_map(Body::Error),
            bytes(TEXT_MAX).prop_map(Body::AddClient),
            bytes(TEXT_MAX).prop_map(Body::RemoveClient),
            Just(Body::Pause),
            Just(Body::Resume),
            prop::collection::vec(any::<i64>(), 0..50).prop_map(Body::SyncConnections),
            (9..i64::MAX).prop_map(Body::Unknown),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(id in any::<i64>(), connection in any::<i64>(), body in bodies()) {
            let message = Message { connection, body };
            let mut bytes = BytesMut::new();
            encode(id, &message, &mut bytes);
            prop_assert_eq!(decode(bytes.freeze()), Ok(message));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = decode(bytes.into());
        }
    }
}
