//! The bytes of one direction, in order. Empty, it holds no memory.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A queue of bytes whose memory is a small multiple of its length, however small the pieces are
/// that come in.
#[derive(Debug, Default)]
pub struct Buffer {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    length: usize,
}

/// A piece at least this long may be kept by reference: the memory behind it is at most this many
/// times smaller than a message.
const KEEP_MIN: usize = 8 * 1024;

impl Buffer {
    /// Returns the number of bytes that are queued.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is queued.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends `data`. A large piece is kept by reference while the queue is empty, that is while
    /// the reader keeps up; anything else is copied, so that a slow reader does not hold whole
    /// messages for a few bytes of each.
    pub fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if data.len() < KEEP_MIN {
            self.length += data.len();
            self.tail.extend_from_slice(&data);
        } else if self.is_empty() {
            self.push_own(data);
        } else {
            self.push_own(Bytes::copy_from_slice(&data));
        }
    }

    /// Appends `data` by reference whatever its length, for bytes that the caller owns anyway.
    pub fn push_own(&mut self, data: Bytes) {
        if data.len() < KEEP_MIN && !self.is_empty() {
            self.push(data);
            return;
        }
        if data.is_empty() {
            return;
        }
        self.length += data.len();
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
        self.chunks.push_back(data);
    }

    /// Takes between 1 and `max` bytes off the front; `None` when there are none.
    pub fn pop(&mut self, max: usize) -> Option<Bytes> {
        if max == 0 || self.is_empty() {
            return None;
        }
        if self.chunks.is_empty() {
            self.chunks
                .push_back(std::mem::take(&mut self.tail).freeze());
        }
        let front = self.chunks.front_mut()?;
        let piece = if front.len() > max {
            front.split_to(max)
        } else {
            self.chunks.pop_front()?
        };
        self.length -= piece.len();
        if self.is_empty() {
            self.release();
        }
        Some(piece)
    }

    /// Drops all bytes and all memory and returns how many bytes were dropped.
    pub fn clear(&mut self) -> usize {
        let length = std::mem::take(&mut self.length);
        self.release();
        length
    }

    fn release(&mut self) {
        self.chunks = VecDeque::new();
        self.tail = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECES_MAX: usize = if cfg!(miri) { 4 } else { 30 };

    proptest! {
        #[test]
        fn bytes_come_out_in_order(pieces in prop::collection::vec((0..20_000_usize, any::<bool>(), 0..30_000_usize), 0..PIECES_MAX)) {
            let mut buffer = Buffer::default();
            let (mut sent, mut read) = (Vec::new(), Vec::new());
            for (length, own, take) in pieces {
                let piece: Vec<u8> = (sent.len()..sent.len() + length).map(|at| at.to_le_bytes()[at % 2]).collect();
                sent.extend_from_slice(&piece);
                if own { buffer.push_own(piece.into()) } else { buffer.push(piece.into()) }
                if let Some(out) = buffer.pop(take) {
                    prop_assert!(!out.is_empty() && out.len() <= take);
                    read.extend_from_slice(&out);
                }
                prop_assert_eq!(buffer.len(), sent.len() - read.len());
            }
            while let Some(out) = buffer.pop(7_777) { read.extend_from_slice(&out); }
            prop_assert_eq!(sent, read);
        }
    }
}
