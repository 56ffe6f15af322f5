//! The dialect `watertight.v1`: frames one after the other in binary WebSocket messages.
#![doc = include_str!("../../../../docs/wire.md")]

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::wire::Reason;
use crate::wire::frame::{Frame, StreamId, TARGET_MAX};

/// The WebSocket subprotocol (RFC 6455, section 1.9) that asks for this dialect.
pub const SUBPROTOCOL: &str = "watertight.v1";

/// The most bytes that a frame has besides its data or target.
pub const OVERHEAD_MAX: usize = 1 + 10 + 10;

mod kind {
    pub(super) const OPEN: u8 = 1;
    pub(super) const ACCEPT: u8 = 2;
    pub(super) const DATA: u8 = 3;
    pub(super) const WINDOW: u8 = 4;
    pub(super) const FINISH: u8 = 5;
    pub(super) const DELIVERED: u8 = 6;
    pub(super) const RESET: u8 = 7;
    pub(super) const PING: u8 = 8;
    pub(super) const PONG: u8 = 9;
    pub(super) const GO_AWAY: u8 = 10;
}

/// Why bytes are not frames. The session cannot go on: where the next frame begins is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends within a frame.
    #[error("a frame is cut short")]
    Short,
    /// No frame has this type.
    #[error("unknown frame type {0}")]
    UnknownType(u8),
    /// A number has more than 64 bits, or more than its field holds.
    #[error("a number is too large")]
    NumberTooLarge,
    /// A stream has the number 0.
    #[error("stream 0 does not exist")]
    StreamZero,
    /// A target is longer than [`TARGET_MAX`].
    #[error("a target is too long")]
    TargetTooLong,
}

/// Appends `frame` to `out`.
pub fn encode(frame: &Frame, out: &mut BytesMut) {
    match frame {
        Frame::Open {
            stream,
            window,
            target,
        } => {
            head(out, kind::OPEN, *stream);
            put_number(out, u64::from(*window));
            put_bytes(out, target);
        }
        Frame::Accept { stream, window } => {
            head(out, kind::ACCEPT, *stream);
            put_number(out, u64::from(*window));
        }
        Frame::Data { stream, data } => {
            head(out, kind::DATA, *stream);
            put_bytes(out, data);
        }
        Frame::Window { stream, credit } => {
            head(out, kind::WINDOW, *stream);
            put_number(out, u64::from(*credit));
        }
        Frame::Finish { stream } => head(out, kind::FINISH, *stream),
        Frame::Delivered { stream } => head(out, kind::DELIVERED, *stream),
        Frame::Reset { stream, reason } => {
            head(out, kind::RESET, *stream);
            out.put_u8(reason.to_wire());
        }
        Frame::Ping { nonce } => {
            out.put_u8(kind::PING);
            out.put_u64(*nonce);
        }
        Frame::Pong { nonce } => {
            out.put_u8(kind::PONG);
            out.put_u64(*nonce);
        }
        Frame::GoAway { reason } => {
            out.put_u8(kind::GO_AWAY);
            out.put_u8(reason.to_wire());
        }
    }
}

/// Reads the frames of one message. After an error it yields nothing more.
#[derive(Debug)]
pub struct Decoder {
    rest: Bytes,
}

impl Decoder {
    /// Starts at the first frame of `message`.
    #[must_use]
    pub const fn new(message: Bytes) -> Self {
        Self { rest: message }
    }

    fn frame(&mut self) -> Result<Frame, DecodeError> {
        let kind = self.byte()?;
        Ok(match kind {
            kind::OPEN => {
                let stream = self.stream()?;
                let window = self.number_u32()?;
                let length = self.length()?;
                if length > TARGET_MAX {
                    return Err(DecodeError::TargetTooLong);
                }
                let target = self.bytes(length)?;
                Frame::Open {
                    stream,
                    window,
                    target,
                }
            }
            kind::ACCEPT => Frame::Accept {
                stream: self.stream()?,
                window: self.number_u32()?,
            },
            kind::DATA => {
                let stream = self.stream()?;
                let length = self.length()?;
                let data = self.bytes(length)?;
                Frame::Data { stream, data }
            }
            kind::WINDOW => Frame::Window {
                stream: self.stream()?,
                credit: self.number_u32()?,
            },
            kind::FINISH => Frame::Finish {
                stream: self.stream()?,
            },
            kind::DELIVERED => Frame::Delivered {
                stream: self.stream()?,
            },
            kind::RESET => Frame::Reset {
                stream: self.stream()?,
                reason: Reason::from_wire(self.byte()?),
            },
            kind::PING => Frame::Ping {
                nonce: self.nonce()?,
            },
            kind::PONG => Frame::Pong {
                nonce: self.nonce()?,
            },
            kind::GO_AWAY => Frame::GoAway {
                reason: Reason::from_wire(self.byte()?),
            },
            unknown => return Err(DecodeError::UnknownType(unknown)),
        })
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.rest.try_get_u8().map_err(|_| DecodeError::Short)
    }

    fn nonce(&mut self) -> Result<u64, DecodeError> {
        self.rest.try_get_u64().map_err(|_| DecodeError::Short)
    }

    fn stream(&mut self) -> Result<StreamId, DecodeError> {
        StreamId::new(self.number()?).ok_or(DecodeError::StreamZero)
    }

    fn number_u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::NumberTooLarge)
    }

    fn length(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.number()?).map_err(|_| DecodeError::NumberTooLarge)
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                return Err(DecodeError::NumberTooLarge);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DecodeError::NumberTooLarge)
    }

    fn bytes(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        if length > self.rest.len() {
            return Err(DecodeError::Short);
        }
        Ok(self.rest.split_to(length))
    }
}

impl Iterator for Decoder {
    type Item = Result<Frame, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let frame = self.frame();
        if frame.is_err() {
            self.rest.clear();
        }
        Some(frame)
    }
}

fn head(out: &mut BytesMut, kind: u8, stream: StreamId) {
    out.put_u8(kind);
    put_number(out, stream.number());
}

fn put_number(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    out.put_u8(u8::try_from(number).unwrap_or(0));
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let stream = (1..=u64::MAX).prop_map(|number| StreamId::new(number).unwrap());
        let reason = any::<u8>().prop_map(Reason::from_wire);
        let data = prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        (0..10, stream, any::<u32>(), data, reason, any::<u64>()).prop_map(
            |(kind, stream, window, data, reason, nonce)| match kind {
                0 => Frame::Open {
                    stream,
                    window,
                    target: data,
                },
                1 => Frame::Accept { stream, window },
                2 => Frame::Data { stream, data },
                3 => Frame::Window {
                    stream,
                    credit: window,
                },
                4 => Frame::Finish { stream },
                5 => Frame::Delivered { stream },
                6 => Frame::Reset { stream, reason },
                7 => Frame::Ping { nonce },
                8 => Frame::Pong { nonce },
                _ => Frame::GoAway { reason },
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(frames in prop::collection::vec(frames(), 0..20)) {
            let mut message = BytesMut::new();
            for frame in &frames {
                let before = message.len();
                encode(frame, &mut message);
                let payload = match frame {
                    Frame::Open { target, .. } => target.len(),
                    Frame::Data { data, .. } => data.len(),
                    _ => 0,
                };
                // An open has one more number, and a target is short enough for its length to be
                // small.
                prop_assert!(message.len() - before <= OVERHEAD_MAX + payload);
            }
            let decoded: Result<Vec<_>, _> = Decoder::new(message.freeze()).collect();
            prop_assert_eq!(decoded.unwrap(), frames);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_always_end(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let length = bytes.len();
            let results: Vec<_> = Decoder::new(bytes.into()).collect();
            prop_assert!(results.len() <= length);
            let errors = results.iter().filter(|result| result.is_err()).count();
            prop_assert!(errors <= 1 && results.iter().rev().skip(1).all(Result::is_ok));
        }
    }

    #[test]
    fn malformed_frames_are_named() {
        let first = |bytes: &'static [u8]| Decoder::new(Bytes::from_static(bytes)).next().unwrap();
        assert_eq!(first(&[0]), Err(DecodeError::UnknownType(0)));
        assert_eq!(first(&[kind::FINISH]), Err(DecodeError::Short));
        assert_eq!(first(&[kind::FINISH, 0]), Err(DecodeError::StreamZero));
        assert_eq!(first(&[kind::DATA, 1, 5, b'x']), Err(DecodeError::Short));
        assert_eq!(
            first(&[
                kind::FINISH,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                2
            ]),
            Err(DecodeError::NumberTooLarge)
        );
        assert_eq!(
            first(&[kind::ACCEPT, 1, 0x80, 0x80, 0x80, 0x80, 0x10]),
            Err(DecodeError::NumberTooLarge)
        );
        assert_eq!(
            first(&[kind::OPEN, 1, 0, 0x81, 4]),
            Err(DecodeError::TargetTooLong)
        );
    }
}

/// The document and the code say the same, number by number.
#[cfg(test)]
mod document {
    use super::*;

    const WIRE: &str = include_str!("../../../../docs/wire.md");

    /// The first two cells of the rows of the table under `heading` whose first cell is a number.
    fn rows(heading: &str) -> Vec<(u8, String)> {
        let (_, section) = WIRE.split_once(heading).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let row = |line: &str| {
            let mut cells = line.split('|').skip(1).map(str::trim);
            Some((cells.next()?.parse().ok()?, cells.next()?.to_owned()))
        };
        section.lines().filter_map(row).collect()
    }

    fn stream() -> StreamId {
        StreamId::new(1).unwrap()
    }

    #[test]
    fn frames_have_the_numbers_of_the_document() {
        let (stream, reason) = (stream(), Reason::Done);
        let (window, credit, nonce) = (0, 0, 0);
        let (target, data) = (Bytes::new(), Bytes::new());
        let frames = [
            (
                "open",
                Frame::Open {
                    stream,
                    window,
                    target,
                },
            ),
            ("accept", Frame::Accept { stream, window }),
            ("data", Frame::Data { stream, data }),
            ("window", Frame::Window { stream, credit }),
            ("finish", Frame::Finish { stream }),
            ("delivered", Frame::Delivered { stream }),
            ("reset", Frame::Reset { stream, reason }),
            ("ping", Frame::Ping { nonce }),
            ("pong", Frame::Pong { nonce }),
            ("go-away", Frame::GoAway { reason }),
        ];
        let written = frames.map(|(name, frame)| {
            let mut bytes = BytesMut::new();
            encode(&frame, &mut bytes);
            (bytes[0], name.to_owned())
        });
        assert_eq!(rows("\n## Frames"), written);
    }

    #[test]
    fn reasons_have_the_numbers_of_the_document() {
        let reasons = Reason::ALL.map(|reason| (reason.to_wire(), reason.name().to_owned()));
        assert_eq!(rows("\n## Reasons"), reasons);
        for number in 0..=u8::MAX {
            let known = Reason::ALL.into_iter().find(|it| it.to_wire() == number);
            let expected = known.unwrap_or(Reason::Aborted);
            assert_eq!(Reason::from_wire(number), expected, "{number}");
        }
    }

    #[test]
    fn the_example_of_the_document_is_what_it_says() {
        let (_, hex) = WIRE.split_once("As an example, `").unwrap();
        let (hex, _) = hex.split_once('`').unwrap();
        let byte = |text| u8::from_str_radix(text, 16).unwrap();
        let example: Bytes = hex.split(' ').map(byte).collect();
        let open = Frame::Open {
            stream: stream(),
            window: 262_144,
            target: Bytes::from_static(b"tcp/web:808"),
        };
        let mut bytes = BytesMut::new();
        encode(&open, &mut bytes);
        assert_eq!(bytes, example);
        assert_eq!(Decoder::new(example).next(), Some(Ok(open)));
    }
}
