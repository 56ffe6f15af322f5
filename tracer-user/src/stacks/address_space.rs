//! The executable mappings of a process.

use std::fs;
use std::io::{self, Read as _};
use std::ops::Range;
use std::sync::Arc;

use framehop::Unwinder as _;
use framehop::x86_64::UnwinderX86_64;
use tracer_core::report::StackGap;

use super::frame::Frame;
use super::module::{File, Files, Identity, Table, identity};

/// How much of `/proc/PID/maps` is read, in bytes.
const MAPS_BYTES: u64 = 16 << 20;
/// How many executable mappings of a process are read.
const MAPPINGS_MAX: usize = 1024;

/// An executable mapping of a file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<u64>,
    offset: u64,
}

/// The executable code of one process.
pub(super) struct AddressSpace {
    /// The program that the process was running then.
    program: Identity,
    mappings: Vec<(Mapping, Arc<File>)>,
    unwinder: UnwinderX86_64<Table>,
}

impl AddressSpace {
    /// Reads the mappings.
    ///
    /// # Errors
    ///
    /// When the process is gone, or this one may not read what it has mapped.
    pub(super) fn read(tgid: u32, files: &mut Files) -> Result<Self, StackGap> {
        let program = program(tgid).map_err(gap)?;
        let mut maps = String::new();
        fs::File::open(format!("/proc/{tgid}/maps"))
            .and_then(|file| file.take(MAPS_BYTES).read_to_string(&mut maps))
            .map_err(gap)?;
        let mut unwinder = UnwinderX86_64::new();
        let mut mappings = Vec::new();
        for (mapping, path) in maps.lines().filter_map(executable).take(MAPPINGS_MAX) {
            let file = match files.open(tgid, &mapping.range, path) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(StackGap::NotPermitted);
                }
                // Code of this one mapping has no name.
                Err(_) => continue,
                Ok(file) => file,
            };
            if let Some(module) = file.module(&mapping.range, mapping.offset) {
                unwinder.add_module(module);
            }
            mappings.push((mapping, file));
        }
        Ok(Self {
            program,
            mappings,
            unwinder,
        })
    }

    /// Whether the process still runs the same program.
    pub(super) fn is_current(&self, tgid: u32) -> bool {
        program(tgid).is_ok_and(|program| program == self.program)
    }

    /// Whether `address` is in a known mapping.
    pub(super) fn has(&self, address: u64) -> bool {
        self.mapping(address).is_some()
    }

    /// Returns the unwinder over all mappings.
    pub(super) fn unwinder(&self) -> &UnwinderX86_64<Table> {
        &self.unwinder
    }

    /// Returns the frame of an instruction.
    pub(super) fn frame(&self, address: u64) -> Frame {
        let location = self.mapping(address).map(|(mapping, file)| {
            let offset = address - mapping.range.start + mapping.offset;
            (file.clone(), offset)
        });
        Frame { address, location }
    }

    fn mapping(&self, address: u64) -> Option<&(Mapping, Arc<File>)> {
        self.mappings
            .iter()
            .find(|(mapping, _)| mapping.range.contains(&address))
    }
}

fn program(tgid: u32) -> io::Result<Identity> {
    let metadata = fs::metadata(format!("/proc/{tgid}/exe"))?;
    Ok(identity(&metadata))
}

fn gap(error: io::Error) -> StackGap {
    if error.kind() == io::ErrorKind::PermissionDenied {
        StackGap::NotPermitted
    } else {
        StackGap::ProcessGone
    }
}

/// Parses a line of `/proc/PID/maps` (proc_pid_maps(5)); `None` unless it maps a file executable.
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
    fn our_own_code_is_found() {
        let space = AddressSpace::read(std::process::id(), &mut Files::default()).unwrap();
        let address = our_own_code_is_found as *const () as u64;
        let frame = space.frame(address);
        let (file, _) = frame.location.unwrap();
        assert_eq!(
            file.path,
            std::env::current_exe().unwrap().display().to_string()
        );
        assert!(space.is_current(std::process::id()));
        assert!(!space.has(8));
    }
}
