//! The user stack of the thread that opens a socket, for `--stacks`: registers and raw bytes, which
//! user space unwinds.
//!
//! Most programs are built without frame pointers, so the kernel's own walk (`bpf_get_stack`) would
//! lose its way.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::btf_map;
use tracer_abi::counter::Counter;
use tracer_abi::limits::STACKS_BYTES;
use tracer_abi::record::{STACK_BYTES, STACK_PART, StackRecord};

use crate::counters::count;
use crate::kernel::{self, Task, offset, read, size_u32};

#[btf_map]
static STACKS: RingBuf<StackRecord, { STACKS_BYTES as usize }> = RingBuf::new();

/// Set before load: whether stacks are wanted.
#[unsafe(no_mangle)]
static STACKS_WANTED: u32 = 0;

/// Records the current thread's stack for the socket `id`, if stacks are wanted.
#[inline(always)]
pub(crate) fn record(id: u64) {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    if unsafe { ptr::read_volatile(&raw const STACKS_WANTED) } == 0 {
        return;
    }
    let regs = Task::current().user_registers();
    let (Some(ip), Some(sp), Some(bp)) = (
        read::<u64>(regs, offset!(regs_ip)),
        read::<u64>(regs, offset!(regs_sp)),
        read::<u64>(regs, offset!(regs_bp)),
    ) else {
        return;
    };
    let Some(mut entry) = STACKS.reserve_untyped::<StackRecord>(0) else {
        count(Counter::StackFailures);
        return;
    };
    let to = entry.as_mut_ptr();
    // SAFETY: `to` is ring memory of this size, aligned to eight bytes.
    unsafe {
        (&raw mut (*to).id).write(id);
        (&raw mut (*to).tgid).write(kernel::tgid());
        (&raw mut (*to).ip).write(ip);
        (&raw mut (*to).sp).write(sp);
        (&raw mut (*to).bp).write(bp);
        (&raw mut (*to).length).write(copy(&raw mut (*to).stack, sp));
    }
    // Drained on the timer of the other rings.
    entry.submit(BPF_RB_NO_WAKEUP.into());
}

/// Copies the stack from `sp` up, part by part until its end, and returns how much there is.
///
/// # Safety
///
/// `to` must be memory of a ring, of this size.
#[inline(always)]
unsafe fn copy(to: *mut [u8; STACK_BYTES], sp: u64) -> u32 {
    let mut length = 0;
    while length < STACK_BYTES {
        // SAFETY: the part lies within `to`; the helper checks the address that it reads.
        let failed = unsafe {
            bpf_probe_read_user(
                to.byte_add(length).cast::<c_void>(),
                size_u32(STACK_PART),
                (sp as *const c_void).wrapping_byte_add(length),
            )
        };
        if failed != 0 {
            break;
        }
        length += STACK_PART;
    }
    size_u32(length)
}
