//! The user stack of whoever opens a socket, for `--stacks`: registers and raw bytes, which user space unwinds.
//!
//! Most programs are built without frame pointers, so the kernel's own walk (`bpf_get_stack`) would lose its way.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_probe_read_user, bpf_task_pt_regs,
};
use aya_ebpf::macros::btf_map;
use core::ffi::c_void;
use core::ptr;
use tracer_abi::counter::Counter;
use tracer_abi::limits::STACKS_BYTES;
use tracer_abi::record::{STACK_BYTES, STACK_PART, StackRecord};

use crate::kernel::{self, offset, read};
use crate::storage::count;

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
    // SAFETY: the current task always has user registers where a hook runs in a system call.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const c_void;
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
#[inline(always)]
fn copy(to: *mut [u8; STACK_BYTES], sp: u64) -> u32 {
    let mut length = 0;
    while length < STACK_BYTES {
        // SAFETY: the part lies within `to`; the helper checks the address that it reads.
        let failed = unsafe {
            bpf_probe_read_user(
                to.byte_add(length).cast::<c_void>(),
                STACK_PART as u32,
                (sp as *const c_void).wrapping_byte_add(length),
            )
        };
        if failed != 0 {
            break;
        }
        length += STACK_PART;
    }
    length as u32
}
