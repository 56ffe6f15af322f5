//! Names of frames, from symbol tables and debug information.

use std::collections::{HashMap, HashSet};
use std::io::{self, Seek as _};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Symbolizer};
use rustix::fs::{MemfdFlags, memfd_create};
use tracer_core::event::printable;
use tracer_core::report::Call;

use super::frame::Frame;
use super::module::File;

/// The largest file that symbols are read from, in bytes.
const FILE_BYTES: u64 = 256 << 20;

/// The calls at offsets of files.
pub(super) struct Symbols(HashMap<(Arc<File>, u64), Vec<Call>>);

/// Looks up all frames, file by file.
pub(super) fn look_up<'a>(frames: impl Iterator<Item = &'a Frame>) -> Symbols {
    let mut wanted: HashMap<Arc<File>, HashSet<u64>> = HashMap::new();
    for (file, offset) in frames.filter_map(|frame| frame.location.as_ref()) {
        wanted.entry(file.clone()).or_default().insert(*offset);
    }
    let mut symbols = HashMap::new();
    for (file, offsets) in wanted {
        let offsets: Vec<u64> = offsets.into_iter().collect();
        match symbolize(&file, &offsets) {
            Ok(calls) => symbols.extend(
                offsets
                    .into_iter()
                    .zip(calls)
                    .map(|(offset, calls)| ((file.clone(), offset), calls)),
            ),
            Err(error) => log::debug!("no symbols for {}: {error}", file.path),
        }
    }
    Symbols(symbols)
}

impl Symbols {
    /// Returns the calls of a frame, the innermost first. Inlined functions are calls of their own.
    pub(super) fn calls(&self, frame: &Frame) -> Vec<Call> {
        let Some((file, offset)) = &frame.location else {
            return vec![Call {
                function: None,
                module: None,
                offset: frame.address,
                source: None,
            }];
        };
        self.0
            .get(&(file.clone(), *offset))
            .filter(|calls| !calls.is_empty())
            .cloned()
            .unwrap_or_else(|| vec![call(file, *offset, None, None)])
    }
}

fn call(file: &File, offset: u64, function: Option<&str>, code: Option<&CodeInfo<'_>>) -> Call {
    Call {
        function: function.map(printable),
        module: Some(file.path.clone()),
        offset,
        source: code.map(|code| {
            let path = printable(&code.to_path().to_string_lossy());
            match code.line {
                Some(line) => format!("{path}:{line}"),
                None => path,
            }
        }),
    }
}

/// Looks up offsets in one file. The traced program may truncate the file at any time, and the
/// library maps what it reads: so it is given a copy.
fn symbolize(file: &File, offsets: &[u64]) -> io::Result<Vec<Vec<Call>>> {
    let mut from = file.file.try_clone()?;
    if from.metadata()?.len() > FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    from.rewind()?;
    let mut copy: std::fs::File = memfd_create("module", MemfdFlags::CLOEXEC)?.into();
    io::copy(&mut io::Read::take(from, FILE_BYTES), &mut copy)?;
    let source = Source::Elf(Elf::new(format!("/proc/self/fd/{}", copy.as_raw_fd())));
    let symbolizer = Symbolizer::new();
    let found = symbolizer
        .symbolize(&source, Input::FileOffset(offsets))
        .map_err(io::Error::other)?;
    Ok(found
        .iter()
        .zip(offsets)
        .map(|(found, offset)| {
            let Some(symbol) = found.as_sym() else {
                return Vec::new();
            };
            let inlined = symbol.inlined.iter().rev();
            inlined
                .map(|of| call(file, *offset, Some(&of.name), of.code_info.as_ref()))
                .chain([call(
                    file,
                    *offset,
                    Some(&symbol.name),
                    symbol.code_info.as_deref(),
                )])
                .collect()
        })
        .collect())
}
