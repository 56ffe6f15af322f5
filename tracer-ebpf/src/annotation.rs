//! The annotation channel: `setsockopt(fd, SOL_WATERTIGHT, BIND | END, value, length)`.
//!
//! A `cgroup/setsockopt` program takes the call before the kernel looks at it
//! (`__cgroup_bpf_run_filter_setsockopt`). Without a tracer the kernel answers ENOPROTOOPT
//! (EOPNOTSUPP on `AF_UNIX`) and nothing has happened.

#[cfg(feature = "annotate")]
mod channel;
#[cfg(feature = "annotate")]
pub use channel::{Heard, annotate, bind, end};

use crate::layout::shared;

/// The private `level` of the annotation channel: "WT" in ASCII. No kernel protocol uses it.
pub const SOL_WATERTIGHT: i32 = 0x5754;
/// `optname`: this socket serves this owner.
pub const BIND: i32 = 1;
/// `optname`: the owner's request is over; every socket bound to it must now close.
pub const END: i32 = 2;
/// The only version of the value layout.
pub const VERSION: u16 = 1;
/// The longest label in bytes.
pub const LABEL_MAX: usize = 64;

shared! {
    /// What a socket serves: one stream of one session. Both ends of a tunnel use the same pair.
    #[derive(Default, Hash, PartialOrd, Ord)]
    pub struct Owner {
        /// The session, unique on every node that takes part.
        pub session: u64,
        /// The stream within the session; 0 is the session itself.
        pub stream: u64,
    } is 16 bytes
}

impl Owner {
    /// In an END: the owner that the socket is bound to.
    pub const PRESENT: Self = Self {
        session: 0,
        stream: 0,
    };

    /// Returns the owner that stands for the whole session.
    #[must_use]
    pub const fn whole_session(self) -> Self {
        Self {
            session: self.session,
            stream: 0,
        }
    }
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Role {
    /// Administration, metrics, DNS, directory.
    Control = 0,
    /// A listening socket.
    Listener = 1,
    /// The tunnel's own connection between server and agent.
    Link = 2,
    /// Carries one stream: a visitor's connection or the dialed target.
    Stream = 3,
    /// Kept alive between requests; judged by idleness only.
    Pool = 4,
}

impl Role {
    /// Returns the role with this number on the wire.
    #[must_use]
    pub const fn from_u16(value: u16) -> Option<Self> {
        match value {
            0 => Some(Self::Control),
            1 => Some(Self::Listener),
            2 => Some(Self::Link),
            3 => Some(Self::Stream),
            4 => Some(Self::Pool),
            _ => None,
        }
    }

    /// Returns the role's name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Listener => "listener",
            Self::Link => "link",
            Self::Stream => "stream",
            Self::Pool => "pool",
        }
    }
}

/// The fixed part of an annotation's value, in native byte order. A BIND may be followed by up to
/// [`LABEL_MAX`] bytes of UTF-8; an END is exactly this long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "decode",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[repr(C)]
pub struct Header {
    /// [`VERSION`].
    pub version: u16,
    /// BIND: the [`Role`]. END: a reason of the program's own choice.
    pub detail: u16,
    /// Zero.
    pub reserved: u32,
    /// The owner; in an END [`Owner::PRESENT`] means the one that the socket is bound to.
    pub owner: Owner,
}

const _: () = assert!(size_of::<Header>() == 24);

impl Header {
    /// The length of the fixed part in bytes.
    pub const LEN: usize = size_of::<Self>();

    /// Returns the value's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let parts: [&[u8]; 5] = [
            &self.version.to_ne_bytes(),
            &self.detail.to_ne_bytes(),
            &self.reserved.to_ne_bytes(),
            &self.owner.session.to_ne_bytes(),
            &self.owner.stream.to_ne_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// Whether the fields that both annotations share are as the ABI wants them.
    #[must_use]
    pub const fn is_well_formed(&self) -> bool {
        self.version == VERSION && self.reserved == 0
    }
}

/// One step of a UTF-8 check (RFC 3629, section 4), written as a state machine so that the eBPF
/// verifier can follow it: the state says which continuation bytes are still due and how the next
/// one is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Utf8 {
    due: u32,
    low: u32,
    high: u32,
}

impl Utf8 {
    /// The state before the first byte.
    #[must_use]
    pub const fn start() -> Self {
        Self {
            due: 0,
            low: 0x80,
            high: 0xbf,
        }
    }

    /// Takes the next byte; `None` when the text cannot be UTF-8.
    #[inline(always)]
    #[must_use]
    pub const fn next(self, byte: u8) -> Option<Self> {
        let byte = byte as u32;
        if self.due > 0 {
            if byte < self.low || byte > self.high {
                return None;
            }
            return Some(Self {
                due: self.due - 1,
                low: 0x80,
                high: 0xbf,
            });
        }
        let (due, low, high) = match byte {
            0x00..=0x7f => (0, 0x80, 0xbf),
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xe1..=0xef => (2, 0x80, 0xbf),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            _ => return None,
        };
        Some(Self { due, low, high })
    }

    /// Whether the text may end here.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.due == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_utf8(bytes: &[u8]) -> bool {
        bytes
            .iter()
            .try_fold(Utf8::start(), |state, byte| state.next(*byte))
            .is_some_and(Utf8::is_complete)
    }

    #[test]
    fn utf8_agrees_with_core_on_every_four_byte_prefix_class() {
        let classes = [
            0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0,
            0xe1, 0xec, 0xed, 0xee, 0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff,
        ];
        for a in classes {
            for b in classes {
                for c in classes {
                    for d in classes {
                        let text = [a, b, c, d];
                        for length in 0..=4 {
                            let text = &text[..length];
                            assert_eq!(
                                is_utf8(text),
                                core::str::from_utf8(text).is_ok(),
                                "{text:x?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn header_bytes_are_the_layout_of_the_struct() {
        let header = Header {
            version: VERSION,
            detail: Role::Pool as u16,
            reserved: 0,
            owner: Owner {
                session: 7,
                stream: u64::MAX,
            },
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[0..2], 1_u16.to_ne_bytes());
        assert_eq!(bytes[2..4], 4_u16.to_ne_bytes());
        assert_eq!(bytes[4..8], [0; 4]);
        assert_eq!(bytes[8..16], 7_u64.to_ne_bytes());
        assert_eq!(bytes[16..24], [0xff; 8]);
    }
}
