//! What is known of each socket, of the owners that ended, and of processes.

mod annotators;
mod members;
mod owners;
mod releases;
mod slots;

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::{self, NonNull};

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::btf_maps::{Array, PerCpuArray, SkStorage};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use tracer_abi::counter::Counter;
use tracer_abi::facts::{Socket, fact};
use tracer_abi::pinned::Settings;
use tracer_abi::record;

use crate::counters::count;
use crate::emit;
use crate::kernel::{Sock, Task, now_ns};
use crate::socket::SocketRef;

pub(crate) use annotators::{annotates_bit, annotator_gone, opened_by, remember_annotator};
pub(crate) use members::{
    add_member, belongs, forget_process, is_bystander, is_member, remove_member, remove_target,
};
pub(crate) use owners::{end, ends};
pub(crate) use releases::count_release;
pub(crate) use slots::release;

/// What is known of the sockets that have no slot.
#[btf_map]
static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// How the programs were loaded, for a tracer that finds them pinned. No program reads it.
#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map]
static NEXT_ID: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Looks up what is known of a socket with this cookie.
#[inline(always)]
pub(crate) fn lookup(sk: Sock, cookie: impl FnOnce() -> u64) -> Option<SocketRef> {
    slots::find(sk, cookie).or_else(|| get(sk, 0))
}

/// Gives a socket that no hook has seen before an empty record, whose id is 0.
#[inline(always)]
pub(crate) fn create(sk: Sock) -> Option<SocketRef> {
    let made = get(sk, BPF_SK_STORAGE_GET_F_CREATE.into());
    if made.is_none() {
        count(Counter::StorageFailures);
    }
    made
}

/// Does the same for a socket that is being made: it gets a slot, if its slot is free.
#[inline(always)]
pub(crate) fn create_at_birth(sk: Sock, cookie: u64) -> Option<SocketRef> {
    slots::claim(sk, cookie).or_else(|| {
        count(Counter::WithoutSlot);
        create(sk)
    })
}

/// Gives a record to an accepted socket that no hook saw before, as MPTCP makes them, and emits its
/// event.
#[inline(always)]
pub(crate) fn create_accepted(sk: Sock, family: u16, protocol: u16) -> Option<SocketRef> {
    let socket = create(sk)?;
    if socket.id() == 0 {
        let now_ns = now_ns();
        socket.set_id(new_id());
        socket.set_born_ns(now_ns);
        socket.set_flags(fact::CHILD | fact::UNWATCHED);
        socket.set_family(family);
        socket.set_protocol(protocol);
        hold(socket, || now_ns);
        emit::brief(record::ARRIVED, now_ns, socket);
    }
    Some(socket)
}

#[inline(always)]
fn get(sk: Sock, flags: u64) -> Option<SocketRef> {
    let map = (&raw const SOCKETS).cast_mut();
    // SAFETY: the map is ours, and `sk` a socket.
    let found: *mut c_void =
        unsafe { bpf_sk_storage_get(map.cast(), sk.as_ptr(), ptr::null_mut(), flags) };
    // SAFETY: a map's value.
    NonNull::new(found.cast()).map(|socket| unsafe { SocketRef::new(socket) })
}

/// Returns a number that no other socket has: the CPU in the top 16 bits, a count below.
#[inline(always)]
pub(crate) fn new_id() -> u64 {
    let Some(next) = NEXT_ID.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the map returned the pointer; the value is eight bytes and aligned. Not relaxed: LLVM
    // gives relaxed atomics the instructions that return nothing.
    let count = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(next, 1) };
    // SAFETY: the helper has no preconditions.
    let cpu = u64::from(unsafe { bpf_get_smp_processor_id() });
    (cpu << 48) | ((count + 1) & ((1 << 48) - 1))
}

/// Notes that a file descriptor for the socket exists. Returns whether this is the first time; a
/// listener's child counts as accepted then.
#[inline(always)]
pub(crate) fn hold(socket: SocketRef, now_ns: impl FnOnce() -> u64) -> bool {
    let before = socket.mark(fact::HELD);
    if before & fact::HELD != 0 {
        return false;
    }
    socket.set_held_ns(now_ns());
    if before & fact::CHILD != 0 {
        count(Counter::Accepted);
    }
    true
}

/// Notes the current process, `tgid`, as the opener of a socket that has none.
#[inline(always)]
pub(crate) fn set_opener(socket: SocketRef, tgid: impl FnOnce() -> u32) {
    if socket.opener() != 0 {
        return;
    }
    socket.set_opener(tgid());
    socket.set_comm(Task::current().comm());
}
