//! Thaws the audit's cgroup also when this process is killed while it is frozen.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};

use crate::exec::own_command;

/// The hidden subcommand that waits for the end of its standard input and thaws a cgroup.
pub(crate) const THAW: &str = "__thaw";

/// A process that thaws a cgroup when this one has ended, whatever ended it, or when this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Thawer(Child);

impl Thawer {
    /// Starts the process. The cgroup may be frozen from here on.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(crate) fn start(cgroup: &Path) -> io::Result<Self> {
        let mut command = own_command(THAW, cgroup)?;
        // A group of its own: what is sent to this process's group does not end it.
        command.stdin(Stdio::piped()).process_group(0);
        command.spawn().map(Self)
    }
}

impl Drop for Thawer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            log::warn!("cannot wait for the process that thaws the cgroup: {error}");
        }
    }
}

/// Waits until whoever started this process lets go of its standard input, then thaws `cgroup`.
///
/// # Errors
///
/// When the cgroup cannot be written; one that is gone is no error.
pub(crate) fn wait_and_thaw(cgroup: &Path) -> io::Result<()> {
    io::stdin().read_to_end(&mut Vec::new())?;
    match fs::write(cgroup.join("cgroup.freeze"), "0") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}
