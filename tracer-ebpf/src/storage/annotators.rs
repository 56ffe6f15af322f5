//! The processes that annotate.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use tracer_abi::counter::Counter;
use tracer_abi::limits::ANNOTATORS_MAX;
use tracer_abi::record::ANNOTATES;

use crate::counters::count;
use crate::kernel::{Task, now_ns};
use crate::socket::SocketRef;

#[btf_map]
static ANNOTATORS: HashMap<
    u32,
    Annotator,
    { ANNOTATORS_MAX as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// The life of a process that annotates: others may have its number before and after it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Annotator {
    /// When it was started.
    started_ns: u64,
    /// When it exited or became another program; 0 before.
    gone_ns: u64,
}

/// Whether [`ANNOTATORS`] has an entry: most programs do not annotate, and a load is cheaper than a
/// lookup.
static mut ANYBODY_ANNOTATES: u32 = 0;

#[inline(always)]
fn anybody_annotates() -> bool {
    // SAFETY: a static of our own, of a size that is loaded at once.
    unsafe { (&raw const ANYBODY_ANNOTATES).read_volatile() != 0 }
}

/// Remembers that the current process annotates.
#[inline(always)]
pub(crate) fn remember_annotator(tgid: u32) {
    if annotator(tgid).is_some_and(|known| known.gone_ns == 0) {
        return;
    }
    let life = Annotator {
        started_ns: Task::current().started_ns(),
        gone_ns: 0,
    };
    if ANNOTATORS.insert(tgid, life, 0).is_err() {
        count(Counter::AnnotatorFailures);
    }
    // SAFETY: a static of our own; every store is the same.
    unsafe { (&raw mut ANYBODY_ANNOTATES).write_volatile(1) };
}

#[inline(always)]
fn annotator(tgid: u32) -> Option<Annotator> {
    let known = ANNOTATORS.get_ptr(tgid)?;
    // SAFETY: the map returned the pointer. Copied at once; one that changes meanwhile is of a
    // process that just exits.
    Some(unsafe { known.read_volatile() })
}

/// Notes that a process exits or becomes another program: what is opened under its number from now
/// on is not its own.
#[inline(always)]
pub(crate) fn annotator_gone(tgid: u32) {
    if !anybody_annotates() {
        return;
    }
    if let Some(known) = ANNOTATORS.get_ptr_mut(tgid) {
        // SAFETY: the map returned the pointer; the field is an aligned word.
        unsafe {
            let gone_ns = &raw mut (*known).gone_ns;
            if gone_ns.read_volatile() == 0 {
                gone_ns.write_volatile(now_ns());
            }
        }
    }
}

/// Returns [`ANNOTATES`] when the opener of the socket, or `tgid` if that is not known, is a
/// process that annotates.
#[inline(always)]
pub(crate) fn annotates_bit(socket: SocketRef, tgid: impl FnOnce() -> u32) -> u32 {
    if !anybody_annotates() {
        return 0;
    }
    let opener = socket.opener();
    let who = if opener == 0 { tgid() } else { opener };
    let opened_ns = socket.held_ns();
    match annotator(who) {
        Some(life)
            if opened_ns >= life.started_ns && (life.gone_ns == 0 || opened_ns <= life.gone_ns) =>
        {
            ANNOTATES
        }
        Some(_) | None => 0,
    }
}
