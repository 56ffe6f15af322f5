//! What can go wrong between the programs and the kernel.

use std::io;

use super::pinned::PinError;
use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use thiserror::Error;
use tracer_core::btf::BtfError;

/// Where the kernel publishes its own type information.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What went wrong between the programs and the kernel.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// [`KERNEL_BTF`] cannot be read.
    #[error("{KERNEL_BTF} cannot be read: {0}")]
    NoBtf(#[source] io::Error),
    /// A field that the programs read is not in this kernel.
    #[error(transparent)]
    Offset(#[from] BtfError),
    /// `/proc/self/ns/pid` cannot be read.
    #[error("/proc/self/ns/pid cannot be read: {0}")]
    NoNamespace(#[source] io::Error),
    /// The object or its maps were refused.
    #[error("the eBPF maps could not be made: {}", chain(.0))]
    Object(#[source] Box<EbpfError>),
    /// A program was refused.
    #[error("the eBPF program {name} could not be {verb}: {}", of_program(.source))]
    Program {
        /// The program.
        name: &'static str,
        /// "loaded" or "attached".
        verb: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// A map could not be read or written.
    #[error("the eBPF map {name} could not be read: {}", chain(.source))]
    Map {
        /// The map.
        name: &'static str,
        /// Why.
        source: Box<MapError>,
    },
    /// The witness could not be read.
    #[error("the witness (iter/task_file) could not be read: {0}")]
    Witness(#[source] io::Error),
    /// The pins.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The attachments cannot be read.
    #[error("the attachments of the eBPF programs could not be read: {0}")]
    AttachState(#[source] io::Error),
    /// The embedded object lacks a part: a broken build.
    #[error("the embedded eBPF object has no {0}: it was built from other sources")]
    Missing(&'static str),
}

/// Joins an error's causes: aya's outer errors have no details.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Leaves out the verifier's log, which may be long and is logged.
fn of_program(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, .. } => io_error.to_string(),
        other => chain(other),
    }
}

impl ProbeError {
    /// The system call's error number, if a system call failed.
    #[must_use]
    pub fn os_error(&self) -> Option<i32> {
        let mut cause: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = cause {
            if let Some(code) = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error)
            {
                return Some(code);
            }
            cause = error.source();
        }
        None
    }
}

/// Makes the error of a program that was refused.
pub(super) fn program_error(
    name: &'static str,
    verb: &'static str,
    source: ProgramError,
) -> ProbeError {
    if let ProgramError::LoadError { verifier_log, .. } = &source {
        log::debug!("the verifier's log of the eBPF program {name}: {verifier_log}");
    }
    ProbeError::Program {
        name,
        verb,
        source: Box::new(source),
    }
}

/// Makes the error of a map that cannot be used.
pub(super) fn map_error(name: &'static str) -> impl Fn(MapError) -> ProbeError {
    move |source| ProbeError::Map {
        name,
        source: Box::new(source),
    }
}
