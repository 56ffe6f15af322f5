//! The child process of the self-test: its connection must fire every hook.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use tracer_abi::annotation::{self, Heard, Owner, Role};

use crate::cgroup;
use crate::exec::own_command;

/// The hidden subcommand that enters a cgroup and makes the self-test's connection.
pub const SELFTEST: &str = "__selftest";

/// What the child prints when it has a bound socket open.
pub(super) const READY: &str = "ready";

/// What the child waits for on its standard input before it makes a socket.
pub(super) const GO: &[u8] = b"go";

/// The owner that the child's socket is bound to.
pub(super) const SELFTEST_OWNER: Owner = Owner {
    session: u64::MAX,
    stream: u64::MAX,
};

/// Returns the command that starts the child in `cgroup`. It waits for [`GO`], prints [`READY`]
/// when it has a bound socket open, and goes on when its standard input ends.
pub(super) fn command(cgroup: &Path) -> io::Result<Command> {
    own_command(SELFTEST, cgroup)
}

/// Enters `cgroup`, then opens, annotates and releases one connection, so that every hook fires.
///
/// # Errors
///
/// When the cgroup cannot be entered, loopback does not work, or no tracer took the annotations.
pub fn run(cgroup: &Path) -> anyhow::Result<()> {
    io::stdin().read_exact(&mut [0; GO.len()])?;
    cgroup::enter(cgroup)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut dialed = TcpStream::connect(listener.local_addr()?)?;
    let (mut accepted, _) = listener.accept()?;
    let bound = annotation::bind(&dialed, Role::Control, SELFTEST_OWNER, "self-test")?;
    // Fails before a SYN is sent: TCP has no broadcast.
    let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 9));
    anyhow::ensure!(
        TcpStream::connect(nowhere).is_err(),
        "connected to a broadcast address"
    );
    println!("{READY}");
    io::stdin().read_to_end(&mut Vec::new())?;
    anyhow::ensure!(
        bound == Heard::Yes && annotation::end(&dialed, Owner::PRESENT, 0)? == Heard::Yes,
        "no tracer took the annotations"
    );
    // One side finishes first, so that the other passes through CLOSE_WAIT.
    accepted.write_all(b"x")?;
    drop(accepted);
    dialed.read_to_end(&mut Vec::new())?;
    Ok(())
}
