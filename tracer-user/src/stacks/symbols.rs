//! Names of frames, from symbol tables, debug information and Go's own tables.

use std::collections::{HashMap, HashSet};
use std::io::{self, Seek as _};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolizer};
use rustix::fs::{MemfdFlags, memfd_create};
use tracer_core::event::printable;
use tracer_core::report::Call;

use super::frame::Frame;
use super::module::File;
use super::pclntab::Pclntab;

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
        match calls_of(&file, &offsets) {
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

/// Copies a file. The traced program may truncate it at any time, and the library maps what it
/// reads.
fn copy(file: &File) -> io::Result<std::fs::File> {
    let mut from = file.file.try_clone()?;
    if from.metadata()?.len() > FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    from.rewind()?;
    let mut copy: std::fs::File = memfd_create("module", MemfdFlags::CLOEXEC)?.into();
    io::copy(&mut io::Read::take(from, FILE_BYTES), &mut copy)?;
    Ok(copy)
}

/// Looks up offsets in one file.
fn calls_of(file: &File, offsets: &[u64]) -> io::Result<Vec<Vec<Call>>> {
    let copy = copy(file)?;
    let source = Source::Elf(Elf::new(format!("/proc/self/fd/{}", copy.as_raw_fd())));
    let symbolizer = Symbolizer::new();
    let found = symbolizer
        .symbolize(&source, Input::FileOffset(offsets))
        .unwrap_or_else(|error| {
            log::debug!("no symbols for {}: {error}", file.path);
            Vec::new()
        });
    let go = Pclntab::read(&copy);
    let calls = offsets.iter().enumerate().map(|(index, offset)| {
        let symbol = found.get(index).and_then(|found| found.as_sym());
        let of_go = || go.as_ref()?.find(file.stated_address(*offset)?);
        match symbol {
            Some(symbol) if symbol.code_info.is_some() => of_symbol(file, *offset, symbol),
            symbol => match (of_go(), symbol) {
                (Some(found), _) => vec![Call {
                    function: Some(printable(&found.function)),
                    module: Some(file.path.clone()),
                    offset: *offset,
                    source: found.source.as_deref().map(printable),
                }],
                (None, Some(symbol)) => of_symbol(file, *offset, symbol),
                (None, None) => Vec::new(),
            },
        }
    });
    Ok(calls.collect())
}

fn of_symbol(file: &File, offset: u64, symbol: &Sym<'_>) -> Vec<Call> {
    let inlined = symbol.inlined.iter().rev();
    inlined
        .map(|of| call(file, offset, Some(&of.name), of.code_info.as_ref()))
        .chain([call(
            file,
            offset,
            Some(&symbol.name),
            symbol.code_info.as_deref(),
        )])
        .collect()
}
