//! The self-test: one annotated connection is opened and released inside the cgroup, and every hook must have seen it.

pub mod probe_child;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use thiserror::Error;
use tracer_abi::counter::Counter;

use crate::cgroup::Cgroup;

use crate::probes::{ProbeError, Probes};
use crate::witness;
use probe_child::{READY, SELFTEST_OWNER};
use tracer_core::counters::Counters;
use tracer_core::event::{self, Descriptor, Event};

/// How long the child may take.
const PATIENCE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(5);

/// What the self-test found.
#[derive(Debug, Error)]
pub enum SelfTestError {
    /// The programs or their maps.
    #[error(transparent)]
    Probes(#[from] ProbeError),
    /// The child could not be run.
    #[error("the self-test's process failed: {0}")]
    ProbeChild(String),
    /// Hooks that should have fired did not.
    #[error("these hooks did not see the self-test's connection: {}", .0.join(", "))]
    Blind(Vec<&'static str>),
}

/// What is known of the witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// It has just met sockets of the audit.
    Proven,
    /// It must meet the self-test's.
    Untested,
}

/// Runs the self-test. Other processes may live in the cgroup meanwhile; records that wait in the rings are lost.
///
/// # Errors
///
/// When a hook is blind, or the test could not be made.
pub fn run(probes: &mut Probes, cgroup: &Cgroup, witness: Witness) -> Result<(), SelfTestError> {
    // An audit within this one may have told of the same owner's end.
    probes.forget(&[SELFTEST_OWNER]);
    let before = probes.counters()?;
    let mut child = start(cgroup)?;
    // Before the witness looks, only an accept that asks for the address can have told of it.
    let accept_seen = probes.counters()?.since(&before).of(Counter::Accepted) >= 1;
    let witnessed = witness == Witness::Proven || witnessed(probes)?;
    drop(child.stdin.take());
    let status = wait(&mut child)?;
    if !status {
        return Err(SelfTestError::ProbeChild(
            "it ended with an error".to_owned(),
        ));
    }
    let counters = settled(probes, &before)?;
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
        ("cgroup_attach_task", of(Counter::Entered) >= 1),
        (
            "setsockopt",
            of(Counter::Tagged) >= 1 && of(Counter::Ended) >= 1,
        ),
        ("sock_release", of(Counter::Released) >= 3),
        ("iter/task_file", witnessed),
        ("the ring", bound.is_some()),
    ];
    probes.forget(&[SELFTEST_OWNER]);
    let blind: Vec<&'static str> = checks
        .into_iter()
        .filter_map(|(hook, saw)| (!saw).then_some(hook))
        .collect();
    if blind.is_empty() {
        Ok(())
    } else {
        Err(SelfTestError::Blind(blind))
    }
}

/// Starts the child and waits until it has a bound socket open.
fn start(cgroup: &Cgroup) -> Result<Child, SelfTestError> {
    let failed = |error: std::io::Error| SelfTestError::ProbeChild(error.to_string());
    let mut child = probe_child::command(cgroup.path())
        .and_then(|mut command: Command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        })
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(failed)?;
    }
    if line.trim_end() == READY {
        return Ok(child);
    }
    // It said why on standard error.
    drop(child.stdin.take());
    let _ = child.wait();
    Err(SelfTestError::ProbeChild("it did not get ready".to_owned()))
}

fn witnessed(probes: &mut Probes) -> Result<bool, SelfTestError> {
    let is_selftest = |descriptor: &Descriptor| {
        let socket = descriptor.socket;
        socket.is_some_and(|socket| socket.facts.owner == SELFTEST_OWNER)
    };
    let met = witness::meets(probes.walk()?, is_selftest).map_err(ProbeError::Witness)?;
    Ok(met)
}

fn wait(child: &mut Child) -> Result<bool, SelfTestError> {
    let failed = |error: std::io::Error| SelfTestError::ProbeChild(error.to_string());
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status.success());
        }
        std::thread::sleep(STEP);
    }
    child.kill().map_err(failed)?;
    child.wait().map_err(failed)?;
    Err(SelfTestError::ProbeChild(
        "it did not end in time".to_owned(),
    ))
}

/// Waits until the connection's three sockets are released, and returns what was counted since `before`.
fn settled(probes: &Probes, before: &Counters) -> Result<Counters, SelfTestError> {
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        let counters = probes.counters()?.since(before);
        if counters.of(Counter::Released) >= 3 {
            return Ok(counters);
        }
        std::thread::sleep(STEP);
    }
    Ok(probes.counters()?.since(before))
}
