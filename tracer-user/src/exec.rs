//! Runs a command inside the audit's cgroup.
//!
//! This same binary is started again and enters the cgroup before it executes the command. So the
//! audit is complete from the command's first instruction, and no code runs between fork and exec.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cgroup;

/// The hidden subcommand that enters a cgroup and executes a command.
pub const ENTER: &str = "__enter";

/// Returns the command that enters `cgroup` and executes `argv`.
///
/// # Errors
///
/// When this binary cannot be found.
pub fn command(cgroup: &Path, argv: &[OsString]) -> io::Result<Command> {
    let mut command = own_command(ENTER, cgroup)?;
    command.args(argv);
    Ok(command)
}

/// Returns the command that starts this binary with a hidden subcommand for `cgroup`.
pub(crate) fn own_command(subcommand: &str, cgroup: &Path) -> io::Result<Command> {
    // Unlike a path, the link survives an upgrade of the file on disk.
    let binary = PathBuf::from("/proc/self/exe");
    binary.metadata()?;
    let mut command = Command::new(binary);
    command.arg(subcommand).arg(cgroup);
    Ok(command)
}

/// Enters `cgroup` and executes `argv`. Returns only when that failed.
#[must_use]
pub fn exec_in_cgroup(cgroup: &Path, argv: &[OsString]) -> anyhow::Error {
    if let Err(error) = cgroup::enter(cgroup) {
        return error.into();
    }
    let Some((program, arguments)) = argv.split_first() else {
        return anyhow::anyhow!("no command given");
    };
    let error = Command::new(program).args(arguments).exec();
    anyhow::Error::new(error).context(format!("cannot run {}", program.display()))
}
