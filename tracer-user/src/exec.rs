//! Runs a command inside the audit's cgroup.
//!
//! This same binary is started again and enters the cgroup before it executes the command. So the
//! audit is complete from the command's first instruction, and no code runs between fork and exec.
//! A pipe that the execution closes tells why there was none.

use std::convert::Infallible;
use std::ffi::{CString, NulError, OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::unistd::{close, execv};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::cgroup;

/// The hidden subcommand that enters a cgroup and executes a command.
pub const ENTER: &str = "__enter";

/// The status of a shell for a command that is there and cannot be executed.
pub const CANNOT_EXECUTE: u8 = 126;
/// The status of a shell for a command that does not exist.
pub const NOT_FOUND: u8 = 127;

/// The shell for scripts that name no interpreter.
const SHELL: &str = "/bin/sh";
/// How much of a file is read to tell what it is (`BINPRM_BUF_SIZE`).
const HEAD_BYTES: u64 = 256;
/// The longest message of why a command was not executed.
const MESSAGE_BYTES: u64 = 8192;

/// Why a command was not executed, so that its program never ran, or why an audit did not begin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct NotStarted {
    /// The exit status: as a shell's for a command.
    pub status: u8,
    /// What went wrong, and how to fix it.
    pub message: String,
}

impl NotStarted {
    pub(crate) fn cannot_execute(message: String) -> Self {
        Self {
            status: CANNOT_EXECUTE,
            message,
        }
    }

    /// The system had no means to start the command.
    pub(crate) fn not_spawned(error: &io::Error) -> Self {
        Self::cannot_execute(format!("the command cannot be started: {error}"))
    }

    /// Reads what [`NotStarted::send`] wrote; `None` if the command was executed.
    fn receive(from: impl io::Read) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        from.take(MESSAGE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes.split_first().map(|(status, message)| Self {
            status: *status,
            message: String::from_utf8_lossy(message).into_owned(),
        }))
    }

    fn send(&self, mut to: impl io::Write) -> io::Result<()> {
        to.write_all(&[&[self.status], self.message.as_bytes()].concat())
    }
}

/// A command, and the pipe that tells whether it was executed.
#[derive(Debug)]
pub struct Start {
    reader: PipeReader,
    writer: PipeWriter,
}

/// Where a command that has been spawned tells why it was not executed.
#[derive(Debug)]
pub struct Started(PipeReader);

impl Start {
    /// Makes the pipe.
    ///
    /// # Errors
    ///
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // For the child, which closes it when it executes the command.
        let flags = fcntl_getfd(&writer)?;
        fcntl_setfd(&writer, flags.difference(FdFlags::CLOEXEC))?;
        Ok(Self { reader, writer })
    }

    /// Returns the command that enters `cgroup` and executes `program` with `argv`, whose first
    /// element is the program's name for itself.
    ///
    /// # Errors
    ///
    /// When this binary cannot be found.
    pub fn command(&self, cgroup: &Path, program: &Path, argv: &[OsString]) -> io::Result<Command> {
        let mut command = own_command(ENTER, cgroup)?;
        command.arg(self.writer.as_raw_fd().to_string());
        command.arg(program).arg("--").args(argv);
        Ok(command)
    }

    /// Closes this process's end, after the command was spawned.
    #[must_use]
    pub fn spawned(self) -> Started {
        Started(self.reader)
    }
}

impl Started {
    /// Returns why the command was not executed. It waits until the command was executed or ended.
    ///
    /// # Errors
    ///
    /// When the pipe cannot be read.
    pub fn failure(&self) -> io::Result<Option<NotStarted>> {
        NotStarted::receive(&self.0)
    }
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

/// Enters `cgroup` and executes `program`. Returns only when that failed, and tells it at the
/// inherited descriptor `reply_fd`.
#[must_use]
pub fn exec_in_cgroup(
    cgroup: &Path,
    reply_fd: RawFd,
    program: &Path,
    argv: &[OsString],
) -> NotStarted {
    let reply = match reply(reply_fd) {
        Ok(reply) => reply,
        Err(error) => {
            return NotStarted::cannot_execute(format!("cannot reach the tracer: {error}"));
        }
    };
    let not_started = match enter_and_exec(cgroup, program, argv) {
        Ok(never) => match never {},
        Err(not_started) => not_started,
    };
    // The status tells it too, if the tracer is gone.
    let _ = not_started.send(&reply);
    not_started
}

/// Opens the inherited descriptor once more, so that it is closed on exec.
fn reply(inherited: RawFd) -> io::Result<File> {
    let reply = File::options()
        .write(true)
        .open(format!("/proc/self/fd/{inherited}"))?;
    close(inherited)?;
    Ok(reply)
}

fn enter_and_exec(
    cgroup: &Path,
    program: &Path,
    argv: &[OsString],
) -> Result<Infallible, NotStarted> {
    let failed = |error: io::Error| NotStarted::not_spawned(&error);
    let arguments = argv
        .iter()
        .map(|argument| c_string(argument))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(error.into()))?;
    let path = c_string(program.as_os_str()).map_err(|error| failed(error.into()))?;
    // Rust ignores SIGPIPE from the start. A signal that is caught has its default action again in
    // the command.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    let _entered = runtime.enter();
    let _caught = signal(SignalKind::pipe()).map_err(failed)?;
    cgroup::enter(cgroup).map_err(|error| NotStarted::cannot_execute(error.to_string()))?;
    let Err(errno) = execv(&path, &arguments);
    // As execvp(3) does, but for text only: a shell would take a program of another machine for a
    // script.
    if errno == Errno::ENOEXEC && is_text(&head(program)) {
        let shell = c_string(OsStr::new(SHELL)).map_err(|error| failed(error.into()))?;
        let rest = arguments.into_iter().skip(1);
        let arguments: Vec<CString> = [shell.clone(), path].into_iter().chain(rest).collect();
        let Err(errno) = execv(&shell, &arguments);
        return Err(not_executed(Path::new(SHELL), errno));
    }
    Err(not_executed(program, errno))
}

fn c_string(text: &OsStr) -> Result<CString, NulError> {
    CString::new(text.as_bytes())
}

/// Returns the first bytes of a file; none of a file that cannot be read.
fn head(program: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    // What could be read is enough.
    let _ = File::open(program).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    head
}

/// Whether a file is a script by its first line, as bash tells it (`check_binary_file`).
fn is_text(head: &[u8]) -> bool {
    let first_line = head.split(|byte| *byte == b'\n').next();
    !first_line.unwrap_or_default().contains(&0)
}

/// Says why execve(2) failed.
fn not_executed(program: &Path, errno: Errno) -> NotStarted {
    let name = program.display();
    let head = head(program);
    match errno {
        // The program was found before.
        Errno::ENOENT => NotStarted {
            status: NOT_FOUND,
            message: match interpreter(&head) {
                Some(interpreter) => format!(
                    "{name} cannot be executed: the interpreter of its first line, {interpreter:?}, \
                     is not there"
                ),
                None if head.is_empty() => format!("{name} is not there any more"),
                None => format!(
                    "{name} cannot be executed: the dynamic loader that it names is not there \
                     (readelf -l shows it)"
                ),
            },
        },
        Errno::ENOEXEC => NotStarted::cannot_execute(format!(
            "{name} cannot be executed: it is no program for this machine, and no script"
        )),
        Errno::EACCES => NotStarted::cannot_execute(format!(
            "{name} cannot be executed: its permissions, those of its interpreter, or a mount with \
             noexec forbid it"
        )),
        errno => NotStarted::cannot_execute(format!("{name} cannot be executed: {}", errno.desc())),
    }
}

/// Returns the interpreter that a script names in its first line.
fn interpreter(head: &[u8]) -> Option<String> {
    let line = head
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let path = line.split(blank).find(|word| !word.is_empty())?;
    Some(String::from_utf8_lossy(path).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_command_was_not_executed_arrives() {
        let sent = NotStarted {
            status: NOT_FOUND,
            message: "no interpreter".to_owned(),
        };
        let mut bytes = Vec::new();
        sent.send(&mut bytes).unwrap();
        assert_eq!(NotStarted::receive(&*bytes).unwrap(), Some(sent));
        assert_eq!(NotStarted::receive(&[][..]).unwrap(), None);
    }

    #[test]
    fn the_interpreter_is_what_the_kernel_would_execute() {
        let of = |head: &str| interpreter(head.as_bytes());
        assert_eq!(of("#!/bin/sh -e\necho"), Some("/bin/sh".to_owned()));
        assert_eq!(of("#! \t/usr/bin/env sh"), Some("/usr/bin/env".to_owned()));
        assert_eq!(of("#!/bin/sh\r\n"), Some("/bin/sh\r".to_owned()));
        for none in ["", "#!", "#!\n/bin/sh", "echo"] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_script_is_told_from_a_program_by_its_first_line() {
        for text in [&b""[..], b"echo hello", b"echo hello\n\0"] {
            assert!(is_text(text));
        }
        assert!(!is_text(b"\x7fELF\x02\x01\x01\0"));
    }
}
