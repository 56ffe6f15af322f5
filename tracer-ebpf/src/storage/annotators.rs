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
    /// [`Task::life`], which another program does not have.
    life: u64,
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
    let task = Task::current();
    if annotator(tgid).is_some_and(|known| known.gone_ns == 0 && known.life == task.life()) {
        return;
    }
    let life = Annotator {
        started_ns: task.started_ns(),
        life: task.life(),
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
    if anybody_annotates() {
        gone_at(tgid, now_ns);
    }
}

#[inline(always)]
fn gone_at(tgid: u32, at_ns: impl FnOnce() -> u64) {
    if let Some(known) = ANNOTATORS.get_ptr_mut(tgid) {
        // SAFETY: the map returned the pointer; the field is an aligned word.
        unsafe {
            let gone_ns = &raw mut (*known).gone_ns;
            if gone_ns.read_volatile() == 0 {
                gone_ns.write_volatile(at_ns());
            }
        }
    }
}

/// Notes that a process opened a socket at `opened_ns`. If it annotated and is another program, or
/// another process, by now, and no program saw that, its life ends before.
#[inline(always)]
pub(crate) fn opened_by(tgid: u32, task: Task, opened_ns: u64) {
    if !anybody_annotates() {
        return;
    }
    let known = annotator(tgid);
    let Some(life) = known.filter(|it| it.gone_ns == 0 && it.life != task.life()) else {
        return;
    };
    if life.started_ns == task.started_ns() {
        count(Counter::UnseenExecs);
    }
    gone_at(tgid, || opened_ns.saturating_sub(1));
}

/// Returns [`ANNOTATES`] when the opener of the socket is a process that annotates. If the opener is
/// not known, that is `task`, whose number is `tgid`.
#[inline(always)]
pub(crate) fn annotates_bit(socket: SocketRef, task: Task, tgid: impl FnOnce() -> u32) -> u32 {
    if !anybody_annotates() {
        return 0;
    }
    let opener = socket.opener();
    let opened_ns = socket.held_ns();
    let who = if opener == 0 {
        let tgid = tgid();
        opened_by(tgid, task, opened_ns);
        tgid
    } else {
        opener
    };
    match annotator(who) {
        Some(life)
            if opened_ns >= life.started_ns && (life.gone_ns == 0 || opened_ns <= life.gone_ns) =>
        {
            ANNOTATES
        }
        Some(_) | None => 0,
    }
}
