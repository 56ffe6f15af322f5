//! Executable files and libraries, and their unwind tables.

use std::collections::HashMap;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use framehop::{ExplicitModuleSectionInfo, Module};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ReadCache, SegmentFlags, elf};
use tracer_core::event::printable;

/// How many files are kept open at a time. Code in others has no name and no unwind table.
const FILES_MAX: usize = 512;
/// How large an unwind table may be, in bytes.
const TABLE_BYTES: u64 = 64 << 20;
/// Segments are mapped in whole pages.
const PAGE: u64 = 4096;

pub(super) type Table = Arc<[u8]>;

/// A file's device and inode.
pub(super) type Identity = (u64, u64);

/// Returns a file's identity.
pub(super) fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// An executable file or library, held open: it may be unlinked, or its process may be gone, before
/// its symbols are read.
#[derive(Debug)]
pub(super) struct File {
    identity: Identity,
    /// The path, as the process named it.
    pub(super) path: String,
    /// The file itself.
    pub(super) file: fs::File,
    tables: Tables,
}

impl File {
    /// Returns what the unwinder needs of the file where it is mapped at `range`, from `offset` on.
    pub(super) fn module(&self, range: &Range<u64>, offset: u64) -> Option<Module<Table>> {
        self.tables.module(&self.path, range, offset)
    }

    /// Returns the address that the file itself states for `offset`.
    pub(super) fn stated_address(&self, offset: u64) -> Option<u64> {
        self.tables.stated_address(offset)
    }
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

/// The parts of a file that unwinding needs.
#[derive(Clone, Debug, Default)]
struct Tables {
    /// The executable segments.
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
    /// Reads the tables of an ELF file. Any other file has none.
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

    /// Returns the address that the file itself states for `offset`.
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

    fn module(&self, name: &str, range: &Range<u64>, offset: u64) -> Option<Module<Table>> {
        let stated = self.stated_address(offset)?;
        let base = range.start.wrapping_sub(stated);
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
        Some(Module::new(name.to_owned(), range.clone(), base, sections))
    }
}

/// Neighbouring segments may share a page of the file; only the executable one counts.
fn is_executable(flags: SegmentFlags) -> bool {
    matches!(flags, SegmentFlags::Elf { p_flags } if p_flags & elf::PF_X != 0)
}

/// The files that the audited processes have mapped.
#[derive(Debug, Default)]
pub(super) struct Files(HashMap<Identity, Arc<File>>);

impl Files {
    /// Opens the file that a process has mapped at `range`, through the mapping itself: the path
    /// may lead to another file by now.
    ///
    /// # Errors
    ///
    /// When the process is gone, the mapping cannot be read, or too many files are open.
    pub(super) fn open(
        &mut self,
        tgid: u32,
        range: &Range<u64>,
        path: &str,
    ) -> io::Result<Arc<File>> {
        let link = format!("/proc/{tgid}/map_files/{:x}-{:x}", range.start, range.end);
        let metadata = fs::metadata(&link)?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let identity = identity(&metadata);
        if let Some(known) = self.0.get(&identity) {
            return Ok(known.clone());
        }
        if self.0.len() >= FILES_MAX {
            self.0.retain(|_, file| Arc::strong_count(file) > 1);
        }
        if self.0.len() >= FILES_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let file = fs::File::open(&link)?;
        let opened = Arc::new(File {
            identity,
            path: printable(path),
            tables: Tables::read(&file),
            file,
        });
        self.0.insert(identity, opened.clone());
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
