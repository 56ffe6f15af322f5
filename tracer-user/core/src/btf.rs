//! Finds the offset of a field in the kernel's own type information (Documentation/bpf/btf.rst).
//!
//! rustc emits no CO-RE relocations, so the few offsets that the eBPF programs need are set at load
//! time.

use thiserror::Error;

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// Why an offset could not be found.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// The bytes are not BTF of this machine's byte order, or end early.
    #[error("the kernel's type information cannot be read: {0}")]
    Malformed(&'static str),
    /// No such struct.
    #[error("this kernel has no struct {0}")]
    NoStruct(String),
    /// No such field, or one that is a bit field.
    #[error("this kernel's struct {0} has no field {1} of whole bytes")]
    NoField(String, String),
}

/// A view of BTF bytes with an index of its types.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type starts in `types`; type ids start at 1.
    starts: Vec<usize>,
}

impl<'a> Btf<'a> {
    /// Indexes the types.
    ///
    /// # Errors
    ///
    /// When the bytes are not BTF in this machine's byte order or end early.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        if u16_at(bytes, 0)? != MAGIC {
            return Err(BtfError::Malformed("no BTF magic"));
        }
        // Offsets count from the end of the header, whose length newer kernels grow.
        let body = slice(bytes, u32_at(bytes, 4)? as usize, usize::MAX)?;
        let section = |offset: usize, length: usize| -> Result<&'a [u8], BtfError> {
            slice(
                body,
                u32_at(bytes, offset)? as usize,
                u32_at(bytes, length)? as usize,
            )
        };
        let types = section(8, 12)?;
        let strings = section(16, 20)?;
        let mut starts = Vec::new();
        let mut at = 0;
        while at < types.len() {
            starts.push(at);
            at = at
                .checked_add(12 + trailer(u32_at(types, at + 4)?)?)
                .ok_or(BtfError::Malformed("a type without end"))?;
        }
        Ok(Self {
            types,
            strings,
            starts,
        })
    }

    /// Returns the offset in bytes of `path` ("member" or "member.member") in the struct `name`.
    /// Members of unnamed structs and unions are found as in C.
    ///
    /// # Errors
    ///
    /// When the struct or a member does not exist, or the member is a bit field.
    pub fn offset_of(&self, name: &str, path: &str) -> Result<u32, BtfError> {
        let mut at = self
            .structs(name)
            .next()
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))?;
        let missing = || BtfError::NoField(name.to_owned(), path.to_owned());
        let mut bits = 0_u32;
        for part in path.split('.') {
            let (offset, member_type) = self.member(at, part, 0)?.ok_or_else(missing)?;
            bits = bits.checked_add(offset).ok_or_else(missing)?;
            at = self.start(member_type).unwrap_or(usize::MAX);
        }
        if !bits.is_multiple_of(8) {
            return Err(missing());
        }
        Ok(bits / 8)
    }

    /// Returns the size of the struct `name` in bytes.
    ///
    /// # Errors
    ///
    /// When the struct does not exist.
    pub fn size_of(&self, name: &str) -> Result<u32, BtfError> {
        let at = self
            .structs(name)
            .next()
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))?;
        u32_at(self.types, at.saturating_add(8))
    }

    fn structs(&self, name: &str) -> impl Iterator<Item = usize> {
        self.starts.iter().copied().filter(move |start| {
            self.info(*start)
                .is_ok_and(|info| kind(info) == STRUCT && vlen(info) > 0)
                && self
                    .name(*start)
                    .is_ok_and(|found| found == name.as_bytes())
        })
    }

    /// Returns a member's offset in bits and its type.
    fn member(&self, at: usize, name: &str, depth: u8) -> Result<Option<(u32, u32)>, BtfError> {
        const NESTING: u8 = 16;
        let info = self.info(at)?;
        if !matches!(kind(info), STRUCT | UNION) || depth > NESTING {
            return Ok(None);
        }
        for n in 0..vlen(info) as usize {
            let member = at + 12 + n * 12;
            let packed = u32_at(self.types, member + 8)?;
            // With the kind flag the upper byte is the width of a bit field.
            let (offset, width) = if info >> 31 == 1 {
                (packed & 0x00ff_ffff, packed >> 24)
            } else {
                (packed, 0)
            };
            let found = self.name(member)?;
            let member_type = u32_at(self.types, member + 4)?;
            if found == name.as_bytes() && width == 0 {
                return Ok(Some((offset, member_type)));
            }
            if found.is_empty()
                && let Some(start) = self.start(member_type)
                && let Some((inner, inner_type)) = self.member(start, name, depth + 1)?
            {
                return Ok(Some((offset.saturating_add(inner), inner_type)));
            }
        }
        Ok(None)
    }

    fn start(&self, id: u32) -> Option<usize> {
        self.starts.get((id as usize).checked_sub(1)?).copied()
    }

    fn info(&self, at: usize) -> Result<u32, BtfError> {
        u32_at(self.types, at.saturating_add(4))
    }

    /// Returns the name of the type or member whose first word is at `at`.
    fn name(&self, at: usize) -> Result<&'a [u8], BtfError> {
        let offset = u32_at(self.types, at)? as usize;
        let text = self
            .strings
            .get(offset..)
            .ok_or(BtfError::Malformed("a name outside the strings"))?;
        Ok(text.split(|byte| *byte == 0).next().unwrap_or_default())
    }
}

const fn kind(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

const fn vlen(info: u32) -> u32 {
    info & 0xffff
}

/// Returns how many bytes follow the twelve that every type has.
fn trailer(info: u32) -> Result<usize, BtfError> {
    let each = match kind(info) {
        1 | 14 | 17 => return Ok(4),
        3 => return Ok(12),
        2 | 7..=12 | 16 | 18 => 0,
        STRUCT | UNION | 15 | 19 => 12,
        6 | 13 => 8,
        _ => return Err(BtfError::Malformed("a type of unknown kind")),
    };
    Ok(vlen(info) as usize * each)
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], BtfError> {
    let rest = bytes
        .get(at..)
        .ok_or(BtfError::Malformed("a section outside the file"))?;
    if length == usize::MAX {
        return Ok(rest);
    }
    rest.get(..length)
        .ok_or(BtfError::Malformed("a section outside the file"))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], BtfError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .ok_or(BtfError::Malformed("it ends early"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, BtfError> {
    array(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    array(bytes, at).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// struct inner { int a; union { int b; int c; }; int bit:3; };  struct outer { int x; struct
    /// inner in; };
    fn sample(header_length: u32) -> Vec<u8> {
        let strings = b"\0int\0inner\0a\0b\0c\0bit\0outer\0x\0in\0";
        let offset = |name: &str| {
            let quoted = format!("\0{name}\0");
            let at = strings
                .windows(quoted.len())
                .position(|w| w == quoted.as_bytes());
            u32::try_from(at.unwrap() + 1).unwrap()
        };
        let mut types: Vec<u32> = vec![offset("int"), 1 << 24, 4, 32];
        types.extend([0, (5 << 24) | 2, 4]);
        types.extend([offset("b"), 1, 0, offset("c"), 1, 0]);
        types.extend([offset("inner"), (1 << 31) | (4 << 24) | 3, 12]);
        types.extend([
            offset("a"),
            1,
            0,
            0,
            2,
            32,
            offset("bit"),
            1,
            (3 << 24) | 64,
        ]);
        types.extend([offset("outer"), (4 << 24) | 2, 16]);
        types.extend([offset("x"), 1, 0, offset("in"), 3, 32]);
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let type_length = u32::try_from(types.len()).unwrap();
        let mut bytes = vec![];
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        for word in [
            header_length,
            0,
            type_length,
            type_length,
            u32::try_from(strings.len()).unwrap(),
        ] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.resize(header_length as usize, 0xaa);
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_also_in_unnamed_members() {
        // 24 bytes up to Linux 7.0, 32 from 7.1 with new pahole.
        for header_length in [24, 32] {
            let bytes = sample(header_length);
            let btf = Btf::parse(&bytes).unwrap();
            assert_eq!(btf.offset_of("inner", "a"), Ok(0));
            assert_eq!(btf.offset_of("inner", "c"), Ok(4));
            assert_eq!(btf.offset_of("outer", "in.b"), Ok(8));
            assert_eq!(btf.size_of("outer"), Ok(16));
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let bytes = sample(24);
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(
            btf.offset_of("nothing", "a"),
            Err(BtfError::NoStruct("nothing".into()))
        );
        for path in ["z", "x.y", "in.bit", ""] {
            assert!(
                matches!(btf.offset_of("outer", path), Err(BtfError::NoField(..))),
                "{path}"
            );
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0_usize..260, value in any::<u8>(), keep in 0_usize..300) {
            let mut bytes = sample(24);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(keep);
            if let Ok(btf) = Btf::parse(&bytes) {
                let _ = btf.offset_of("outer", "in.b");
            }
        }
    }
}
