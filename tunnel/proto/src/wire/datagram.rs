//! Datagrams in a stream of `watertight.v1`: each is its length in two bytes, in network order, and
//! then its bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest datagram in bytes. UDP's own bound is lower (65,507 by IPv4).
pub const LENGTH_MAX: usize = u16::MAX as usize;

/// Appends a datagram to `out`, or nothing of one that is longer than [`LENGTH_MAX`].
pub fn encode(datagram: &[u8], out: &mut BytesMut) {
    if let Ok(length) = u16::try_from(datagram.len()) {
        out.reserve(size_of::<u16>() + datagram.len());
        out.put_u16(length);
        out.extend_from_slice(datagram);
    }
}

/// Cuts a stream into its datagrams. It holds at most one that is not complete, besides what was
/// pushed last.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }
}

impl Iterator for Decoder {
    type Item = Bytes;

    /// Returns the next datagram that is complete.
    fn next(&mut self) -> Option<Bytes> {
        let mut rest = self.buffer.as_ref();
        let length = usize::from(rest.try_get_u16().ok()?);
        if rest.len() < length {
            return None;
        }
        self.buffer.advance(size_of::<u16>());
        let datagram = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // A flow at rest holds no memory.
            self.buffer = BytesMut::new();
        }
        Some(datagram)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_datagrams(
            datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20),
            cuts in prop::collection::vec(1_usize..50, 1..100),
        ) {
            let mut wire = BytesMut::new();
            for datagram in &datagrams {
                encode(datagram, &mut wire);
            }
            let mut decoder = Decoder::default();
            let mut decoded = Vec::new();
            let mut cuts = cuts.iter().cycle();
            while !wire.is_empty() {
                let cut = (*cuts.next().unwrap()).min(wire.len());
                decoder.push(&wire.split_to(cut));
                decoded.extend(decoder.by_ref());
            }
            prop_assert_eq!(decoded, datagrams);
            prop_assert_eq!(decoder.buffer.capacity(), 0);
        }
    }

    #[test]
    fn the_longest_passes_and_a_longer_one_is_nothing() {
        let mut wire = BytesMut::new();
        encode(&vec![1; LENGTH_MAX + 1], &mut wire);
        assert!(wire.is_empty());
        encode(&vec![1; LENGTH_MAX], &mut wire);
        encode(&[], &mut wire);
        let mut decoder = Decoder::default();
        decoder.push(&wire);
        assert_eq!(decoder.next().unwrap().len(), LENGTH_MAX);
        assert_eq!(decoder.next().unwrap().len(), 0);
        assert_eq!(decoder.next(), None);
    }
}
