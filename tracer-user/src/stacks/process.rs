//! What is mapped in a process: its files, and their unwind tables.

use std::collections::HashMap;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use framehop::x86_64::UnwinderX86_64;
use framehop::{ExplicitModuleSectionInfo, Module, Unwinder as _};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ReadCache, SegmentFlags, elf};

use super::Frame;
use tracer_core::event::printable;

/// How much of `/proc/PID/maps` is read, in bytes.
const MAPS_BYTES: u64 = 16 << 20;
/// How many executable mappings of a process are looked at.
const MAPPINGS_MAX: usize = 1024;
/// How many files are kept open at a time; code in any more has no name and no unwind table.
const FILES_MAX: usize = 512;
/// How large an unwind table may be, in bytes.
const TABLE_BYTES: u64 = 64 << 20;
/// Segments lie in memory by whole pages.
const PAGE: u64 = 4096;

type Table = Arc<[u8]>;

/// A file's device and inode.
type Identity = (u64, u64);

/// An executable file or library, held open: it may be unlinked, or its process gone, before it is needed again.
#[derive(Debug)]
pub(super) struct File {
    identity: Identity,
    /// As the process named it.
    pub(super) path: String,
    /// The file itself.
    pub(super) file: fs::File,
    tables: Tables,
}

impl PartialEq for File {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for File {}

impl Hash for File {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity.hash(state);
    }
}

/// What unwinding needs of a file.
#[derive(Clone, Debug, Default)]
struct Tables {
    /// Those that are executed.
    segments: Vec<Segment>,
    text: Option<Range<u64>>,
    got: Option<Range<u64>>,
    eh_frame: Option<(Range<u64>, Table)>,
    eh_frame_hdr: Option<(Range<u64>, Table)>,
    debug_frame: Option<Table>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    size: u64,
    address: u64,
}

impl Tables {
    /// Reads the tables of an ELF file; one that is none has no tables.
    fn read(file: &fs::File) -> Self {
        let cache = ReadCache::new(file);
        let Ok(elf) = object::File::parse(&cache) else {
            return Self::default();
        };
        let range = |name| {
            let section = elf.section_by_name(name)?;
            Some(section.address()..section.address().checked_add(section.size())?)
        };
        let data = |name| -> Option<Table> {
            let section = elf.section_by_name(name)?;
            (section.size() <= TABLE_BYTES).then_some(())?;
            Some(section.data().ok()?.into())
        };
        let both = |name| Some((range(name)?, data(name)?));
        Self {
            segments: elf
                .segments()
                .filter(|segment| is_executable(segment.flags()))
                .map(|segment| {
                    let (offset, size) = segment.file_range();
                    Segment {
                        offset,
                        size,
                        address: segment.address(),
                    }
                })
                .collect(),
            text: range(".text"),
            got: range(".got"),
            eh_frame: both(".eh_frame"),
            eh_frame_hdr: both(".eh_frame_hdr"),
            debug_frame: data(".debug_frame"),
        }
    }

    /// Returns the address that the file itself gives to what is at `offset`.
    fn stated_address(&self, offset: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| {
            let end = segment.offset.saturating_add(segment.size);
            (segment.offset & !(PAGE - 1)..end).contains(&offset)
        })?;
        Some(
            segment
                .address
                .wrapping_sub(segment.offset)
                .wrapping_add(offset),
        )
    }

    fn module(&self, name: &str, mapping: &Mapping) -> Option<Module<Table>> {
        let stated = self.stated_address(mapping.offset)?;
        let base = mapping.range.start.wrapping_sub(stated);
        let sections = ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: self.text.clone(),
            got_svma: self.got.clone(),
            eh_frame_svma: self.eh_frame.as_ref().map(|(range, _)| range.clone()),
            eh_frame: self.eh_frame.as_ref().map(|(_, table)| table.clone()),
            eh_frame_hdr_svma: self.eh_frame_hdr.as_ref().map(|(range, _)| range.clone()),
            eh_frame_hdr: self.eh_frame_hdr.as_ref().map(|(_, table)| table.clone()),
            debug_frame: self.debug_frame.clone(),
            ..ExplicitModuleSectionInfo::default()
        };
        Some(Module::new(
            name.to_owned(),
            mapping.range.clone(),
            base,
            sections,
        ))
    }
}

/// Neighbouring segments may share a page of the file; only the executable one is mapped to be executed.
fn is_executable(flags: SegmentFlags) -> bool {
    matches!(flags, SegmentFlags::Elf { p_flags } if p_flags & elf::PF_X != 0)
}

/// The files that any process has mapped.
#[derive(Debug, Default)]
pub(super) struct Files(HashMap<Identity, Arc<File>>);

impl Files {
    /// Opens what a process has mapped at `range`, through the mapping itself: the path may mean another file by now.
    fn open(&mut self, tgid: u32, range: &Range<u64>, path: &str) -> Option<Arc<File>> {
        let link = format!("/proc/{tgid}/map_files/{:x}-{:x}", range.start, range.end);
        let metadata = fs::metadata(&link).ok().filter(fs::Metadata::is_file)?;
        let identity = (metadata.dev(), metadata.ino());
        if let Some(known) = self.0.get(&identity) {
            return Some(known.clone());
        }
        if self.0.len() >= FILES_MAX {
            self.0.retain(|_, file| Arc::strong_count(file) > 1);
        }
        if self.0.len() >= FILES_MAX {
            return None;
        }
        let file = fs::File::open(&link).ok()?;
        let opened = Arc::new(File {
            identity,
            path: printable(path),
            tables: Tables::read(&file),
            file,
        });
        self.0.insert(identity, opened.clone());
        Some(opened)
    }
}

/// An executable mapping of a file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<u64>,
    offset: u64,
}

/// The code of one process.
pub(super) struct Space {
    /// The program that it was when this was read.
    program: Identity,
    mappings: Vec<(Mapping, Arc<File>)>,
    unwinder: UnwinderX86_64<Table>,
}

impl Space {
    /// Reads what is mapped; `None` when the process is gone.
    pub(super) fn read(tgid: u32, files: &mut Files) -> Option<Self> {
        let program = program(tgid)?;
        let mut maps = String::new();
        fs::File::open(format!("/proc/{tgid}/maps"))
            .ok()?
            .take(MAPS_BYTES)
            .read_to_string(&mut maps)
            .ok()?;
        let mut unwinder = UnwinderX86_64::new();
        let mut mappings = Vec::new();
        for (mapping, path) in maps.lines().filter_map(executable).take(MAPPINGS_MAX) {
            let Some(file) = files.open(tgid, &mapping.range, path) else {
                continue;
            };
            if let Some(module) = file.tables.module(&file.path, &mapping) {
                unwinder.add_module(module);
            }
            mappings.push((mapping, file));
        }
        Some(Self {
            program,
            mappings,
            unwinder,
        })
    }

    /// Whether the process is still the program that it was.
    pub(super) fn is_current(&self, tgid: u32) -> bool {
        program(tgid) == Some(self.program)
    }

    /// Whether `address` is in a mapping that is known.
    pub(super) fn has(&self, address: u64) -> bool {
        self.mapping(address).is_some()
    }

    /// The unwinder over everything that is mapped.
    pub(super) fn unwinder(&self) -> &UnwinderX86_64<Table> {
        &self.unwinder
    }

    /// Returns the frame of an instruction.
    pub(super) fn frame(&self, address: u64) -> Frame {
        let place = self.mapping(address).map(|(mapping, file)| {
            let offset = address - mapping.range.start + mapping.offset;
            (file.clone(), offset)
        });
        Frame { address, place }
    }

    fn mapping(&self, address: u64) -> Option<&(Mapping, Arc<File>)> {
        self.mappings
            .iter()
            .find(|(mapping, _)| mapping.range.contains(&address))
    }
}

fn program(tgid: u32) -> Option<Identity> {
    let metadata = fs::metadata(format!("/proc/{tgid}/exe")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Takes a line of `/proc/PID/maps` (proc_pid_maps(5)) that maps a file to be executed.
fn executable(line: &str) -> Option<(Mapping, &str)> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let is_executable = fields.next()?.contains('x');
    let offset = hex(fields.next()?)?;
    let (_device, _inode, path) = (fields.next()?, fields.next()?, fields.next()?.trim_start());
    let mapping = Mapping {
        range: hex(start)?..hex(end)?,
        offset,
    };
    (is_executable && path.starts_with('/')).then_some((mapping, path))
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_mappings_of_files_count() {
        let (mapping, path) = executable(
            "7f0000001000-7f0000003000 r-xp 00002000 fe:00 123                        /usr/lib/a b.so",
        )
        .unwrap();
        assert_eq!(mapping.range, 0x7f00_0000_1000..0x7f00_0000_3000);
        assert_eq!(mapping.offset, 0x2000);
        assert_eq!(path, "/usr/lib/a b.so");
        for line in [
            "",
            "7f0000001000-7f0000003000 r--p 00002000 fe:00 123 /usr/lib/a.so",
            "7f0000001000-7f0000003000 r-xp 00000000 00:00 0 ",
            "7f0000001000-7f0000003000 r-xp 00000000 00:00 0                          [vdso]",
            "x-y r-xp 0 0 0 /a",
        ] {
            assert_eq!(executable(line), None, "{line}");
        }
    }

    #[test]
    fn a_file_offset_is_found_in_its_segment_from_the_page_on() {
        let tables = Tables {
            segments: vec![Segment {
                offset: 0x1040,
                size: 0x500,
                address: 0x40_2040,
            }],
            ..Tables::default()
        };
        assert_eq!(tables.stated_address(0x1000), Some(0x40_2000));
        assert_eq!(tables.stated_address(0x1100), Some(0x40_2100));
        assert_eq!(tables.stated_address(0x1540), None);
        assert_eq!(tables.stated_address(0xfff), None);
    }

    #[test]
    fn our_own_code_is_found() {
        let space = Space::read(std::process::id(), &mut Files::default()).unwrap();
        let address = our_own_code_is_found as *const () as u64;
        let frame = space.frame(address);
        let (file, _) = frame.place.unwrap();
        assert_eq!(
            file.path,
            std::env::current_exe().unwrap().display().to_string()
        );
        assert!(space.is_current(std::process::id()));
        assert!(!space.has(8));
    }
}
