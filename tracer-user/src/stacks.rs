//! The user stacks that opened the sockets: unwound when they arrive, symbolized at the end.
//!
//! The kernel side copies registers and raw stack. Most programs have no frame pointers, so the
//! frames are found here, with the unwind tables of the program's own files. Those files belong to
//! the traced program: they are read, never mapped.

mod address_space;
mod frame;
mod module;
mod pclntab;
mod symbols;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use address_space::AddressSpace;
use frame::Frame;
use framehop::Unwinder as _;
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64};
use module::Files;
use tracer_abi::record::{STACK_BYTES, StackRecord};
use tracer_core::report::{Call, StackGap};
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
    gaps: HashMap<u64, StackGap>,
    prune_at: usize,
    /// Whether a stack found no room.
    is_full: bool,
}

impl Stacks {
    /// Unwinds one record of the kernel side. A record that is too short is skipped.
    pub fn add(&mut self, record: &[u8]) {
        let Ok((record, _)) = StackRecord::ref_from_prefix(record) else {
            return;
        };
        if self.of.len() + self.gaps.len() >= STACKS_MAX {
            self.is_full = true;
            return;
        }
        let frames = match self.unwind(record) {
            Ok(frames) => frames,
            Err(gap) => {
                self.gaps.insert(record.id, gap);
                return;
            }
        };
        if frames.len() < 2 {
            self.gaps.insert(record.id, StackGap::NotUnwound);
        }
        let frames = match self.known.get(&frames) {
            Some(known) => known.clone(),
            None => {
                self.known.insert(frames.clone());
                frames
            }
        };
        self.of.insert(record.id, frames);
    }

    /// Drops the stacks of sockets that no longer matter, whenever their number has doubled.
    pub fn prune(&mut self, matters: impl Fn(u64) -> bool) {
        if self.of.len() + self.gaps.len() < self.prune_at.max(PRUNE_MIN) {
            return;
        }
        self.of.retain(|id, _| matters(*id));
        self.gaps.retain(|id, _| matters(*id));
        self.known.retain(|frames| Arc::strong_count(frames) > 1);
        self.prune_at = (self.of.len() + self.gaps.len())
            .saturating_mul(2)
            .min(STACKS_MAX);
    }

    fn unwind(&mut self, record: &StackRecord) -> Result<Frames, StackGap> {
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
        Ok(frames.into())
    }

    /// Returns why a socket has no stack, or only its innermost call; `None` if it has one.
    /// `is_accepted` tells how it was opened, and `is_lossy` whether the kernel side had no room
    /// for a stack.
    #[must_use]
    pub fn gap(&self, id: u64, is_accepted: bool, is_lossy: bool) -> Option<StackGap> {
        if let Some(gap) = self.gaps.get(&id) {
            return Some(*gap);
        }
        (!self.of.contains_key(&id)).then_some(match (self.is_full, is_lossy, is_accepted) {
            (true, _, _) => StackGap::TooMany,
            (_, true, _) => StackGap::Lost,
            (_, _, true) => StackGap::AcceptUnseen,
            (false, false, false) => StackGap::NotOpened,
        })
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
) -> Result<&'a AddressSpace, StackGap> {
    let stale = spaces
        .get(&tgid)
        .is_none_or(|space| !space.is_current(tgid) || !space.has(ip));
    if stale {
        if spaces.len() >= SPACES_MAX {
            spaces.clear();
        }
        spaces.insert(tgid, AddressSpace::read(tgid, files)?);
    }
    spaces.get(&tgid).ok_or(StackGap::ProcessGone)
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
    fn a_record_that_is_short_is_skipped() {
        let mut stacks = Stacks::default();
        stacks.add(&[0; 39]);
        assert!(stacks.symbolize([0]).is_empty());
        assert_eq!(stacks.gap(0, false, false), Some(StackGap::NotOpened));
        assert_eq!(stacks.gap(0, true, false), Some(StackGap::AcceptUnseen));
        assert_eq!(stacks.gap(0, true, true), Some(StackGap::Lost));
    }

    #[test]
    fn a_stack_that_ends_at_once_says_so() {
        let mut stacks = Stacks::default();
        let code = a_stack_that_ends_at_once_says_so as *const () as u64;
        let mut record = vec![0; size_of::<StackRecord>()];
        record[..8].copy_from_slice(&7u64.to_ne_bytes());
        record[8..12].copy_from_slice(&std::process::id().to_ne_bytes());
        record[16..24].copy_from_slice(&code.to_ne_bytes());
        stacks.add(&record);
        assert_eq!(stacks.gap(7, false, false), Some(StackGap::NotUnwound));
        let named = stacks.symbolize([7]);
        let function = named[&7][0].function.as_deref().unwrap();
        assert!(function.contains("ends_at_once"), "{function}");
    }

    #[test]
    fn a_process_that_is_gone_is_the_reason_for_no_stack() {
        let mut stacks = Stacks::default();
        stacks.add(&vec![0; size_of::<StackRecord>()]);
        assert!(stacks.symbolize([0]).is_empty());
        assert_eq!(stacks.gap(0, false, true), Some(StackGap::ProcessGone));
        stacks.is_full = true;
        assert_eq!(stacks.gap(1, false, true), Some(StackGap::TooMany));
    }
}
