//! The eBPF programs: one thin function for each hook. Built for `bpfel-unknown-none` by
//! `cargo xtask ebpf`; elsewhere this binary is a stub, so that the workspace builds and tests
//! without a BPF toolchain.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    allow(
        internal_features,
        reason = "core has no read-modify-write atomics for BPF, which has the instructions"
    ),
    allow(
        unsafe_code,
        reason = "kernel pointers and maps have no safe interface"
    )
)]

#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod histograms;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod rules;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod stack;
#[cfg(target_arch = "bpf")]
mod storage;

#[cfg(not(target_arch = "bpf"))]
fn main() -> std::process::ExitCode {
    eprintln!("this is an eBPF object, not a program: run `cargo xtask ebpf` to build it");
    std::process::ExitCode::FAILURE
}
