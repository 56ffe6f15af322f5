//! Decodes the records of the kernel side. They are hostile input: a record that does not fit its
//! layout is an error of that record only.

use thiserror::Error;
use tracer_abi::facts::Socket;
use tracer_abi::record::{
    self, BoundEvent, BriefEvent, EndedEvent, Head, LeftEvent, OverstayEvent, ReleaseEvent,
};
use tracer_abi::sighting::{KNOWN, Sighting};
use zerocopy::FromBytes;

/// One record of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `socket(2)` made a socket.
    Created(BriefEvent),
    /// A connection waits in a listener's backlog.
    Arrived(BriefEvent),
    /// A socket was bound to an owner.
    Bound(BoundEvent),
    /// An owner ended, for the first time.
    Ended(EndedEvent),
    /// TCP entered CLOSE_WAIT.
    PeerDone(BriefEvent),
    /// TCP fell to CLOSE.
    Died(BriefEvent),
    /// The last file descriptor is gone, in time.
    Released(ReleaseEvent),
    /// The last file descriptor is gone, too late or by exit.
    Overstayed(OverstayEvent),
    /// A socket is reused that has broken a rule.
    Renewed(OverstayEvent),
    /// A process of the audit left its cgroup.
    Left(LeftEvent),
}

/// A record that does not fit the ABI: kernel side and user side are of different builds.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The kind is unknown.
    #[error("unknown record kind {0}")]
    Kind(u32),
    /// The record is too short for its kind.
    #[error("record too short: {length} bytes, its kind has {wanted}")]
    Length {
        /// Bytes of the record.
        length: usize,
        /// Bytes that its kind has.
        wanted: usize,
    },
}

/// Decodes one ring record.
///
/// # Errors
///
/// When the kind is unknown or the record is too short for it.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let head: Head = prefix(bytes)?;
    Ok(match head.kind {
        record::CREATED => Event::Created(prefix(bytes)?),
        record::ARRIVED => Event::Arrived(prefix(bytes)?),
        record::BOUND => Event::Bound(prefix(bytes)?),
        record::ENDED => Event::Ended(prefix(bytes)?),
        record::PEER_DONE => Event::PeerDone(prefix(bytes)?),
        record::DIED => Event::Died(prefix(bytes)?),
        record::RELEASED => Event::Released(prefix(bytes)?),
        record::OVERSTAYED => Event::Overstayed(prefix(bytes)?),
        record::RENEWED => Event::Renewed(prefix(bytes)?),
        record::LEFT => Event::Left(prefix(bytes)?),
        kind => return Err(DecodeError::Kind(kind)),
    })
}

fn prefix<T: FromBytes>(bytes: &[u8]) -> Result<T, DecodeError> {
    T::read_from_prefix(bytes)
        .map(|(value, _)| value)
        .map_err(|_| DecodeError::Length {
            length: bytes.len(),
            wanted: size_of::<T>(),
        })
}

/// One open file descriptor, with what the kernel keeps of its socket if the socket is one of the
/// audit's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Who holds it, and what TCP says.
    pub sighting: Sighting,
    /// The storage, for sockets of the audit.
    pub socket: Option<Socket>,
}

/// Decodes the next descriptor of the witness's byte stream; `None` if more bytes are needed.
#[must_use]
pub fn next_descriptor(bytes: &[u8]) -> Option<(Descriptor, &[u8])> {
    let (sighting, rest) = Sighting::read_from_prefix(bytes).ok()?;
    if sighting.flags & KNOWN == 0 {
        let descriptor = Descriptor {
            sighting,
            socket: None,
        };
        return Some((descriptor, rest));
    }
    let (socket, rest) = Socket::read_from_prefix(rest).ok()?;
    let descriptor = Descriptor {
        sighting,
        socket: Some(socket),
    };
    Some((descriptor, rest))
}

/// Returns the text of a `comm`, with everything that is not printable replaced.
#[must_use]
pub fn comm_text(comm: &[u8; 16]) -> String {
    let end = comm
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(comm.len());
    printable(&String::from_utf8_lossy(
        comm.get(..end).unwrap_or_default(),
    ))
}

/// Returns a socket's label, with everything that is not printable replaced.
#[must_use]
pub fn label_text(socket: &Socket) -> String {
    let length = usize::try_from(socket.facts.label_len).unwrap_or(usize::MAX);
    let bytes = socket
        .label
        .get(..length.min(socket.label.len()))
        .unwrap_or_default();
    printable(&String::from_utf8_lossy(bytes))
}

/// Replaces control and bidirectional-override characters: the traced program chooses its names and
/// labels, and they are printed on a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                '\u{fffd}'
            }
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_refused_when_short_or_unknown() {
        assert_eq!(
            decode(&[0; 8]),
            Err(DecodeError::Length {
                length: 8,
                wanted: 16
            })
        );
        let mut bytes = [0; 72];
        bytes[0] = 99;
        assert_eq!(decode(&bytes), Err(DecodeError::Kind(99)));
        bytes[..4].copy_from_slice(&record::OVERSTAYED.to_ne_bytes());
        assert_eq!(
            decode(&bytes),
            Err(DecodeError::Length {
                length: 72,
                wanted: 280
            })
        );
    }

    #[test]
    fn a_sight_is_whole_or_not_there() {
        const SIGHTING: usize = size_of::<Sighting>();
        const BOTH: usize = SIGHTING + size_of::<Socket>();
        let mut bytes = [0; BOTH];
        assert!(next_descriptor(&bytes[..SIGHTING - 1]).is_none());
        let (descriptor, rest) = next_descriptor(&bytes[..SIGHTING + 6]).unwrap();
        assert!(descriptor.socket.is_none());
        assert_eq!(rest.len(), 6);
        bytes[8..12].copy_from_slice(&KNOWN.to_ne_bytes());
        assert!(next_descriptor(&bytes[..BOTH - 1]).is_none());
        let (descriptor, rest) = next_descriptor(&bytes).unwrap();
        assert!(descriptor.socket.is_some());
        assert!(rest.is_empty());
    }

    #[test]
    fn text_of_the_traced_program_cannot_drive_a_terminal() {
        assert_eq!(
            printable("a\u{1b}]52;c\u{7}b\u{202e}c"),
            "a\u{fffd}]52;c\u{fffd}b\u{fffd}c"
        );
        assert_eq!(comm_text(b"curl\0garbage\0\0\0\0"), "curl");
    }
}
