//! The histograms, one set for each CPU.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use tracer_abi::histogram::Histogram;

use crate::counters::add_to;

const NS_PER_MS: u64 = 1_000_000;

#[btf_map]
static HISTOGRAMS: PerCpuArray<u64, { (Histogram::COUNT * Histogram::SLOTS) as usize }> =
    PerCpuArray::new();

/// Adds a time in nanoseconds.
#[inline(always)]
pub(crate) fn measure(histogram: Histogram, ns: u64) {
    let first = histogram as u32 * Histogram::SLOTS;
    let bits = u64::BITS - (ns / NS_PER_MS).leading_zeros();
    let bucket = if bits < Histogram::BUCKETS {
        bits
    } else {
        Histogram::BUCKETS - 1
    };
    add_to(HISTOGRAMS.get_ptr_mut(first + bucket), 1);
    add_to(HISTOGRAMS.get_ptr_mut(first + Histogram::BUCKETS), ns);
}
