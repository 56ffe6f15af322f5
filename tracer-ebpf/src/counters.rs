//! The counters, one set for each CPU.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use tracer_abi::counter::Counter;

#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// Adds one. Atomic although the value is this CPU's own: a softirq may come between the load and
/// the store.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    add(counter, 1);
}

/// Subtracts one.
#[inline(always)]
pub(crate) fn discount(counter: Counter) {
    add(counter, u64::MAX);
}

#[inline(always)]
fn add(counter: Counter, value: u64) {
    add_to(COUNTERS.get_ptr_mut(counter as u32), value);
}

/// Adds to a map's value, if there is one.
#[inline(always)]
pub(crate) fn add_to(at: Option<*mut u64>, value: u64) {
    if let Some(at) = at {
        // SAFETY: a map returned the pointer; the value is eight bytes and aligned.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(at, value) };
    }
}
