//! The two errands that must be run inside the audit's cgroup: the self-test, and becoming the audited command.
//!
//! Both are this same binary, started again: a process that puts itself into the cgroup before it becomes the command
//! makes the audit complete from the command's first instruction, without a line of code between fork and exec.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tracer_abi::annotation::{self, Heard, Owner, Role};

use crate::cgroup;

/// The hidden subcommand that enters a cgroup and becomes a command.
pub const ENTER: &str = "__enter";
/// The hidden subcommand that enters a cgroup and runs the self-test's traffic.
pub const SELFTEST: &str = "__selftest";

/// What the self-test's process prints when it has a bound socket open.
pub const READY: &str = "ready";

/// The owner that the self-test's socket is bound to.
pub const SELFTEST_OWNER: Owner = Owner {
    session: u64::MAX,
    stream: u64::MAX,
};

/// Returns the command that puts itself into `cgroup` and becomes `argv`.
///
/// # Errors
///
/// When this binary cannot be found.
pub fn command(cgroup: &Path, argv: &[OsString]) -> io::Result<Command> {
    let mut command = Command::new(own_binary()?);
    command.arg(ENTER).arg(cgroup).args(argv);
    Ok(command)
}

/// Returns the command that runs the self-test's traffic in `cgroup`: it prints [`READY`] when it has a bound socket open,
/// and goes on when its standard input ends.
///
/// # Errors
///
/// When this binary cannot be found.
pub fn selftest_command(cgroup: &Path) -> io::Result<Command> {
    let mut command = Command::new(own_binary()?);
    command.arg(SELFTEST).arg(cgroup);
    Ok(command)
}

/// The link outlives an upgrade of the file on disk, which a path does not.
fn own_binary() -> io::Result<PathBuf> {
    let link = PathBuf::from("/proc/self/exe");
    link.metadata().map(|_| link)
}

/// Enters `cgroup` and becomes `argv`. Returns only when that failed.
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

/// Enters `cgroup`, then opens, annotates and releases one connection, so that every hook fires.
///
/// # Errors
///
/// When the cgroup cannot be entered, loopback does not work, or nobody took the annotations.
pub fn run_traffic(cgroup: &Path) -> anyhow::Result<()> {
    cgroup::enter(cgroup)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut dialed = TcpStream::connect(listener.local_addr()?)?;
    let (mut accepted, _) = listener.accept()?;
    let heard = annotation::bind(&dialed, Role::Control, SELFTEST_OWNER, "self-test")?;
    // Fails before a SYN is sent: TCP has no broadcast.
    let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 9));
    anyhow::ensure!(
        TcpStream::connect(nowhere).is_err(),
        "a broadcast was connected to"
    );
    println!("{READY}");
    io::stdin().read_to_end(&mut Vec::new())?;
    anyhow::ensure!(
        heard == Heard::Yes && annotation::end(&dialed, Owner::PRESENT, 0)? == Heard::Yes,
        "nobody took the annotations"
    );
    // One side finishes first, so that the other passes through CLOSE_WAIT.
    accepted.write_all(b"x")?;
    drop(accepted);
    dialed.read_to_end(&mut Vec::new())?;
    Ok(())
}
