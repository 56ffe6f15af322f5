//! The user stacks that opened the sockets: unwound when they arrive, symbolized at the end.
//!
//! The kernel side copies registers and raw stack. Most programs have no frame pointers, so the
//! frames are found here, with the unwind tables of the program's own files. Those files belong to
//! the traced program: they are read, never mapped.

mod address_space;
mod frame;
mod module;
mod symbols;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use address_space::AddressSpace;
use frame::Frame;
use framehop::Unwinder as _;
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64};
use module::Files;
use tracer_abi::record::{STACK_BYTES, StackRecord};
use tracer_core::report::Call;
use zerocopy::FromBytes;

/// The most frames of a stack.
const FRAMES_MAX: usize = 64;
/// For how many sockets stacks are kept. The others have none in the report.
const STACKS_MAX: usize = 1 << 18;
/// How many address spaces are kept at a time.
const SPACES_MAX: usize = 256;
/// With fewer stacks than this, none are pruned.
const PRUNE_MIN: usize = 4096;

/// Whether stacks can be unwound on this machine.
pub const SUPPORTED: bool = cfg!(target_arch = "x86_64");

type Frames = Arc<[Frame]>;

/// The stacks of an audit.
#[derive(Default)]
pub struct Stacks {
    spaces: HashMap<u32, AddressSpace>,
    files: Files,
    cache: CacheX86_64,
    /// Equal stacks are kept once.
    known: HashSet<Frames>,
    of: HashMap<u64, Frames>,
    prune_at: usize,
}

impl Stacks {
    /// Unwinds one record of the kernel side. A record that is too short, or whose process is gone,
    /// is skipped.
    pub fn add(&mut self, record: &[u8]) {
        let Ok((record, _)) = StackRecord::ref_from_prefix(record) else {
            return;
        };
        if self.of.len() >= STACKS_MAX {
            return;
        }
        if let Some(frames) = self.unwind(record) {
            let frames = match self.known.get(&frames) {
                Some(known) => known.clone(),
                None => {
                    self.known.insert(frames.clone());
                    frames
                }
            };
            self.of.insert(record.id, frames);
        }
    }

    /// Drops the stacks of sockets that no longer matter, whenever their number has doubled.
    pub fn prune(&mut self, matters: impl Fn(u64) -> bool) {
        if self.of.len() < self.prune_at.max(PRUNE_MIN) {
            return;
        }
        self.of.retain(|id, _| matters(*id));
        self.known.retain(|frames| Arc::strong_count(frames) > 1);
        self.prune_at = self.of.len().saturating_mul(2).min(STACKS_MAX);
    }

    fn unwind(&mut self, record: &StackRecord) -> Option<Frames> {
        let space = space(&mut self.spaces, &mut self.files, record.tgid, record.ip)?;
        let length = usize::try_from(record.length).unwrap_or(STACK_BYTES);
        let stack = record.stack.get(..length).unwrap_or(&record.stack);
        let mut read = |address: u64| word(stack, record.sp, address).ok_or(());
        let registers = UnwindRegsX86_64::new(record.ip, record.sp, record.bp);
        let mut walk =
            space
                .unwinder()
                .iter_frames(record.ip, registers, &mut self.cache, &mut read);
        let mut frames = Vec::new();
        while frames.len() < FRAMES_MAX
            && let Ok(Some(frame)) = walk.next()
        {
            frames.push(space.frame(frame.address_for_lookup()));
        }
        Some(frames.into())
    }

    /// Returns the stacks of these sockets, with names.
    #[must_use]
    pub fn symbolize(&self, ids: impl IntoIterator<Item = u64>) -> HashMap<u64, Arc<[Call]>> {
        let wanted: Vec<(u64, &Frames)> = ids
            .into_iter()
            .filter_map(|id| Some((id, self.of.get(&id)?)))
            .collect();
        let distinct: HashSet<&Frames> = wanted.iter().map(|(_, frames)| *frames).collect();
        let symbols = symbols::look_up(distinct.iter().flat_map(|frames| frames.iter()));
        let stacks: HashMap<&Frames, Arc<[Call]>> = distinct
            .into_iter()
            .map(|frames| {
                (
                    frames,
                    frames.iter().flat_map(|of| symbols.calls(of)).collect(),
                )
            })
            .collect();
        wanted
            .into_iter()
            .filter_map(|(id, frames)| Some((id, stacks.get(frames)?.clone())))
            .collect()
    }
}

/// Returns the address space of a process. It is read again when the process runs another program
/// or code that is not known.
fn space<'a>(
    spaces: &'a mut HashMap<u32, AddressSpace>,
    files: &mut Files,
    tgid: u32,
    ip: u64,
) -> Option<&'a AddressSpace> {
    let stale = spaces
        .get(&tgid)
        .is_none_or(|space| !space.is_current(tgid) || !space.has(ip));
    if stale {
        if spaces.len() >= SPACES_MAX {
            spaces.clear();
        }
        spaces.insert(tgid, AddressSpace::read(tgid, files)?);
    }
    spaces.get(&tgid)
}

/// Returns the eight bytes at `address` of a stack that was copied from `sp` upwards.
fn word(stack: &[u8], sp: u64, address: u64) -> Option<u64> {
    let at = usize::try_from(address.checked_sub(sp)?).ok()?;
    let bytes = stack.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_within_what_was_copied_only() {
        let stack: Vec<u8> = (0..24).collect();
        let first = u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(word(&stack, 1000, 1000), Some(first));
        assert!(word(&stack, 1000, 1016).is_some());
        for outside in [0, 999, 1017, 1024, u64::MAX] {
            assert_eq!(word(&stack, 1000, outside), None, "{outside}");
        }
    }

    #[test]
    fn a_record_that_is_short_or_of_no_process_is_skipped() {
        let mut stacks = Stacks::default();
        stacks.add(&[0; 39]);
        stacks.add(&vec![0; size_of::<StackRecord>()]);
        assert!(stacks.symbolize([0]).is_empty());
    }
}
