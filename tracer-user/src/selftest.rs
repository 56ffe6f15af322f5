//! The self-test: one annotated connection is opened and released inside the cgroup, and every hook
//! must see it.

pub mod probe_child;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use probe_child::{GO, READY, SELFTEST_OWNER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;
use tracer_abi::counter::Counter;
use tracer_core::counters::Counters;
use tracer_core::event::{self, Descriptor, Event};

use crate::cgroup::Cgroup;
use crate::probes::{ProbeError, Probes};
use crate::witness;

/// How long the probe child may take.
const TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Why the self-test failed.
#[derive(Debug, Error)]
pub enum SelfTestError {
    /// The programs or their maps.
    #[error(transparent)]
    Probes(#[from] ProbeError),
    /// The probe child could not run.
    #[error("the self-test's process failed: {0}")]
    ProbeChild(String),
    /// Hooks that should have fired did not.
    #[error("these hooks did not see the self-test's connection: {}", .0.join(", "))]
    NotSeenBy(Vec<&'static str>),
}

/// Whether to test the witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WitnessCheck {
    /// It has just met sockets of the audit: no need to test it.
    Skipped,
    /// It must meet the self-test's socket.
    Required,
}

/// Runs the self-test in `cgroup`, which the audit covers. Other processes may run there meanwhile.
/// Records that wait in the rings are dropped.
///
/// # Errors
///
/// When a hook does not see the connection, or the test could not run.
pub fn run(
    probes: &mut Probes,
    cgroup: &Cgroup,
    witness_check: WitnessCheck,
) -> Result<(), SelfTestError> {
    // An audit within this one may have ended the same owner.
    probes.forget(&[SELFTEST_OWNER]);
    let before = probes.counts().counters()?;
    let mut child = start(probes, cgroup)?;
    let process = child.id();
    // Before the walk, only the hook of an accept that asks for the address can have seen it.
    let accept_seen = probes
        .counts()
        .counters()?
        .since(&before)
        .of(Counter::Accepted)
        >= 1;
    let witnessed = witness_check == WitnessCheck::Skipped || is_witnessed(probes)?;
    drop(child.stdin.take());
    let succeeded = wait(&mut child)?;
    probes.remove_target(process);
    if !succeeded {
        return Err(SelfTestError::ProbeChild(
            "it ended with an error".to_owned(),
        ));
    }
    let counters = wait_for_releases(probes, &before)?;
    let (mut bound, mut peer_done) = (None, false);
    probes.drain(usize::MAX, |record| match event::decode(record) {
        Ok(Event::Bound(of)) if of.owner == SELFTEST_OWNER => {
            bound = Some(of.brief.id);
        }
        Ok(Event::PeerDone(of)) => peer_done |= Some(of.brief.id) == bound,
        Ok(
            Event::Created(_)
            | Event::Bound(_)
            | Event::Arrived(_)
            | Event::Ended(_)
            | Event::Died(_)
            | Event::Released(_)
            | Event::Left(_)
            | Event::Renewed(_)
            | Event::Overstayed(_),
        )
        | Err(_) => {}
    });
    let of = |counter| counters.of(counter);
    let checks = [
        ("sock_create", of(Counter::Created) >= 2),
        ("sock_ops", of(Counter::Connected) >= 1 && peer_done),
        ("getpeername4", accept_seen),
        ("connect4", of(Counter::Undialed) >= 1),
        (
            "cgroup_attach_task",
            of(Counter::Entered) >= 1 || !probes.follows_cgroup(),
        ),
        (
            "setsockopt",
            of(Counter::Tagged) >= 1 && of(Counter::Ended) >= 1,
        ),
        ("sock_release", of(Counter::Released) >= 3),
        ("iter/task_file", witnessed),
        ("the ring", bound.is_some()),
    ];
    probes.forget(&[SELFTEST_OWNER]);
    let not_seen_by: Vec<&'static str> = checks
        .into_iter()
        .filter_map(|(hook, saw)| (!saw).then_some(hook))
        .collect();
    if not_seen_by.is_empty() {
        Ok(())
    } else {
        Err(SelfTestError::NotSeenBy(not_seen_by))
    }
}

/// Starts the probe child and waits until it has a bound socket open.
fn start(probes: &mut Probes, cgroup: &Cgroup) -> Result<Child, SelfTestError> {
    let failed = |error: std::io::Error| SelfTestError::ProbeChild(error.to_string());
    let mut child = probe_child::command(cgroup.path())
        .and_then(|mut command: Command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        })
        .map_err(failed)?;
    probes.add_target(child.id())?;
    if let Some(stdin) = &mut child.stdin {
        stdin.write_all(GO).map_err(failed)?;
    }
    let mut line = String::new();
    // It prints nothing if its cgroup is frozen meanwhile.
    if let Some(stdout) = child.stdout.take()
        && is_readable(&stdout).map_err(failed)?
    {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(failed)?;
    }
    if line.trim_end() == READY {
        return Ok(child);
    }
    // It has printed the reason to standard error.
    let _ = child.kill();
    let _ = child.wait();
    Err(SelfTestError::ProbeChild("it did not get ready".to_owned()))
}

/// Waits until there is something to read, or the time is over.
fn is_readable(stdout: &ChildStdout) -> std::io::Result<bool> {
    let timeout = Timespec::try_from(TIMEOUT).map_err(std::io::Error::other)?;
    let mut wanted = [PollFd::new(stdout, PollFlags::IN)];
    Ok(poll(&mut wanted, Some(&timeout))? > 0)
}

fn is_witnessed(probes: &mut Probes) -> Result<bool, SelfTestError> {
    let is_selftest = |descriptor: &Descriptor| {
        let socket = descriptor.socket;
        socket.is_some_and(|socket| socket.facts.owner == SELFTEST_OWNER)
    };
    let met = witness::meets(probes.walk()?, is_selftest).map_err(ProbeError::Witness)?;
    Ok(met)
}

fn wait(child: &mut Child) -> Result<bool, SelfTestError> {
    let failed = |error: std::io::Error| SelfTestError::ProbeChild(error.to_string());
    for _ in 0..TIMEOUT.as_millis() / POLL_INTERVAL.as_millis() {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status.success());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    child.kill().map_err(failed)?;
    child.wait().map_err(failed)?;
    Err(SelfTestError::ProbeChild(
        "it did not end in time".to_owned(),
    ))
}

/// Waits until the connection's three sockets are released, and returns what was counted since
/// `before`.
fn wait_for_releases(probes: &Probes, before: &Counters) -> Result<Counters, SelfTestError> {
    for _ in 0..TIMEOUT.as_millis() / POLL_INTERVAL.as_millis() {
        let counters = probes.counts().counters()?.since(before);
        if counters.of(Counter::Released) >= 3 {
            return Ok(counters);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(probes.counts().counters()?.since(before))
}
