//! The table from which a Go program names its own functions and lines (`.gopclntab`). The linker
//! keeps it when it strips symbols and debug information (`-ldflags="-s -w"`).
//!
//! Layout: runtime/symtab.go and debug/gosym/pclntab.go of Go, versions 1.18 and 1.20. The file
//! belongs to the traced program: every read is bounded.

use std::ops::Range;

use object::{Object as _, ObjectSection as _, ReadCache, ReadRef};

/// How large a table may be, in bytes.
const TABLE_BYTES: u64 = 128 << 20;
/// How long a name may be, in bytes.
const NAME_BYTES: usize = 4096;
/// How many steps of a function's line table are taken.
const STEPS_MAX: usize = 1 << 16;
/// The header's magic of Go 1.18, and of Go 1.20 and later.
const MAGIC: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
/// Tables within another section start at a multiple of this.
const ALIGNMENT: usize = 32;
/// Where the header has `textStart`.
const TEXT_START: usize = 8 + 2 * WORD;
const WORD: usize = 8;
/// One entry of the function table: where it starts in the code, and where its record is.
const ENTRY: usize = 8;

/// The table of one file.
#[derive(Debug)]
pub(super) struct Pclntab {
    bytes: Vec<u8>,
    /// Bytes that one step of a program counter counts for.
    quantum: u64,
    functions: usize,
    text_start: u64,
    names: usize,
    units: usize,
    files: usize,
    values: usize,
    records: usize,
}

/// What the table says of an instruction.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GoCall {
    /// The function, with its package.
    pub(super) function: String,
    /// File and line. Of a call that was inlined, they are those of the inlined function.
    pub(super) source: Option<String>,
}

impl Pclntab {
    /// Reads the table of an ELF file; `None` for a program that is not Go's.
    pub(super) fn read(file: &std::fs::File) -> Option<Self> {
        let cache = ReadCache::new(file);
        let elf = object::File::parse(&cache).ok()?;
        let text = elf.section_by_name(".text").map(|text| text.address());
        // By Go's own linker, as a position-independent program, and by another linker.
        [".gopclntab", ".data.rel.ro.gopclntab", ".data.rel.ro"]
            .into_iter()
            .filter_map(|name| elf.section_by_name(name))
            .filter(|section| section.size() <= TABLE_BYTES)
            .find_map(|section| {
                let data = section.data().ok()?;
                let at = find_header(data)?;
                let mut table = Self::parse(data.get(at..)?.to_vec())?;
                if table.text_start == 0 {
                    let field = section
                        .address()
                        .checked_add(u64::try_from(at + TEXT_START).ok()?);
                    table.text_start = field.and_then(|field| relocation(&elf, field)).or(text)?;
                }
                Some(table)
            })
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let field = |index: usize| {
            let at = 8 + index * WORD;
            let word = bytes.get(at..at + WORD)?.try_into().ok()?;
            Some(u64::from_le_bytes(word))
        };
        let offset = |index| usize::try_from(field(index)?).ok();
        let quantum = u64::from(*bytes.get(6)?);
        let (functions, text_start) = (offset(0)?, field(2)?);
        let (names, units, files) = (offset(3)?, offset(4)?, offset(5)?);
        let (values, records) = (offset(6)?, offset(7)?);
        is_header(&bytes).then_some(Self {
            quantum,
            functions,
            text_start,
            names,
            units,
            files,
            values,
            records,
            bytes,
        })
    }

    /// Returns what is known of the instruction at an address of the file.
    pub(super) fn find(&self, address: u64) -> Option<GoCall> {
        let pc = u32::try_from(address.checked_sub(self.text_start)?).ok()?;
        let index = self.last_at_most(pc)?;
        let entry = self.entry(index)?;
        let record = self
            .records
            .checked_add(usize::try_from(self.u32_at(entry + 4)?).ok()?)?;
        let field = |index: usize| self.u32_at(record.checked_add(4 * index)?);
        let function = self.text(self.names, field(1)?)?;
        let start = field(0)?;
        let source = (|| {
            let file = self.value(field(5)?, start, pc)?;
            let line = self.value(field(6)?, start, pc)?;
            let index = field(8)?.checked_add(file)?;
            let of_unit = usize::try_from(index).ok()?.checked_mul(4)?;
            let name = self.u32_at(self.units.checked_add(of_unit)?)?;
            Some(format!("{}:{line}", self.text(self.files, name)?))
        })();
        Some(GoCall { function, source })
    }

    /// Returns the last function that starts at `pc` or before.
    fn last_at_most(&self, pc: u32) -> Option<usize> {
        let Range { mut start, mut end } = 0..self.functions;
        while start < end {
            let middle = start + (end - start) / 2;
            if self.u32_at(self.entry(middle)?)? <= pc {
                start = middle + 1;
            } else {
                end = middle;
            }
        }
        // After the last function comes the end of the code.
        let after = self.u32_at(self.entry(self.functions)?)?;
        start.checked_sub(1).filter(|_| pc < after)
    }

    fn entry(&self, index: usize) -> Option<usize> {
        self.records.checked_add(index.checked_mul(ENTRY)?)
    }

    /// Returns the value that a table of a function has at `pc`: pairs of numbers, how the value
    /// changes and for how much code that holds.
    fn value(&self, table: u32, start: u32, pc: u32) -> Option<u32> {
        let at = self.values.checked_add(usize::try_from(table).ok()?)?;
        let mut bytes = self.bytes.get(at..)?.iter();
        let (mut value, mut until) = (-1i32, u64::from(start));
        for step in 0..STEPS_MAX {
            let change = number(&mut bytes)?;
            if change == 0 && step > 0 {
                return None;
            }
            // Zigzag: the lowest bit is the sign.
            let magnitude = (change >> 1).cast_signed();
            value = value.wrapping_add(if change & 1 == 1 {
                !magnitude
            } else {
                magnitude
            });
            let length = u64::from(number(&mut bytes)?).checked_mul(self.quantum)?;
            until = until.checked_add(length)?;
            if u64::from(pc) < until {
                return u32::try_from(value).ok();
            }
        }
        None
    }

    fn text(&self, table: usize, offset: u32) -> Option<String> {
        let at = table.checked_add(usize::try_from(offset).ok()?)?;
        let bytes = self.bytes.get(at..)?;
        let end = bytes.iter().take(NAME_BYTES).position(|byte| *byte == 0)?;
        let text = String::from_utf8_lossy(bytes.get(..end)?);
        (!text.is_empty()).then(|| text.into_owned())
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        let word = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(u32::from_le_bytes(word))
    }
}

/// Reads a number of seven bits a byte, the lowest first.
fn number<'a>(bytes: &mut impl Iterator<Item = &'a u8>) -> Option<u32> {
    let mut number = 0;
    for shift in (0..u32::BITS).step_by(7) {
        let byte = *bytes.next()?;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn find_header(data: &[u8]) -> Option<usize> {
    (0..data.len())
        .step_by(ALIGNMENT)
        .find(|at| data.get(*at..).is_some_and(is_header))
}

/// Whether a table of a 64-bit little-endian machine starts here.
fn is_header(bytes: &[u8]) -> bool {
    let [a, b, c, d, 0, 0, 1 | 2 | 4, 8, ..] = *bytes else {
        return false;
    };
    MAGIC.contains(&u32::from_le_bytes([a, b, c, d]))
}

/// Returns what the dynamic loader writes to an address of the file, less where it loads the file.
fn relocation<'a, R: ReadRef<'a>>(elf: &object::File<'a, R>, address: u64) -> Option<u64> {
    let mut relocations = elf.dynamic_relocations()?;
    let (_, found) = relocations.find(|(at, _)| *at == address)?;
    u64::try_from(found.addend()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with the functions `main.main` at 0x401000 and `main.get` at 0x401040, both of the
    /// file `/srv/proxy.go`.
    fn table() -> Vec<u8> {
        let mut bytes = vec![0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
        let (names, units, files, values, records) = (72, 96, 100, 120, 136);
        for word in [2, 1, 0x40_1000, names, units, files, values, records] {
            bytes.extend(u64::to_le_bytes(word));
        }
        bytes.extend(b"main.main\0main.get\0\0\0\0\0\0");
        bytes.extend(u32::to_le_bytes(0));
        bytes.extend(b"/srv/proxy.go\0\0\0\0\0\0\0");
        // At 1: file 0 for all of the code. At 4: line 40, then 41 from the 16th byte on.
        bytes.extend([0, 2, 0x80, 1, 82, 16, 2, 48, 0, 0, 0, 0, 0, 0, 0, 0]);
        for entry in [0, 24, 64, 24 + 44, 128, 0] {
            bytes.extend(u32::to_le_bytes(entry));
        }
        for (start, name) in [(0, 0), (64, 10)] {
            for field in [start, name, 0, 0, 0, 1, 4, 0, 0, 0, 0] {
                bytes.extend(u32::to_le_bytes(field));
            }
        }
        bytes
    }

    fn found(address: u64) -> Option<(String, Option<String>)> {
        let found = Pclntab::parse(table()).unwrap().find(address)?;
        Some((found.function, found.source))
    }

    #[test]
    fn functions_and_lines_are_found() {
        let of = |function: &str, line| {
            let source = format!("/srv/proxy.go:{line}");
            Some((function.to_owned(), Some(source)))
        };
        assert_eq!(found(0x40_1000), of("main.main", 40));
        assert_eq!(found(0x40_103f), of("main.main", 41));
        assert_eq!(found(0x40_104f), of("main.get", 40));
        assert_eq!(found(0x40_1050), of("main.get", 41));
        for outside in [0, 0x40_0fff, 0x40_1080, u64::MAX] {
            assert_eq!(found(outside), None);
        }
    }

    #[test]
    fn a_table_that_is_cut_off_or_garbled_is_no_panic() {
        let whole = table();
        let addresses = [0, 0x40_1000, 0x40_1050, 0x40_107f, u64::MAX];
        let look_up = |bytes: Vec<u8>| {
            if let Some(table) = Pclntab::parse(bytes) {
                for address in addresses {
                    let _ = table.find(address);
                }
            }
        };
        for length in 0..whole.len() {
            look_up(whole[..length].to_vec());
        }
        let mut random = fastrand::Rng::with_seed(14);
        for at in 4..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, random.u8(..)] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                look_up(bytes);
            }
        }
        for _ in 0..10_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..16) {
                let at = random.usize(8..bytes.len());
                bytes[at] = random.u8(..);
            }
            look_up(bytes);
        }
    }

    #[test]
    fn numbers_end_within_their_bits() {
        let of = |bytes: &[u8]| number(&mut bytes.iter());
        assert_eq!(of(&[0x7f]), Some(127));
        assert_eq!(of(&[0x80, 0x01]), Some(128));
        assert_eq!(of(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Some(u32::MAX));
        assert_eq!(of(&[0x80; 6]), None);
        assert_eq!(of(&[0x80]), None);
    }

    #[test]
    fn a_header_is_found_within_another_section() {
        let mut data = vec![0; 64];
        data.extend(table());
        assert_eq!(find_header(&data), Some(64));
        assert_eq!(find_header(&data[8..]), None);
        assert_eq!(find_header(&[]), None);
    }
}
