//! How an audit starts: programs that are tried before they are attached, and what a command
//! inherits.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::OFlags;
use tracer_core::ledger::ForeignSocket;

use super::{CGROUP_NAME, StartError, Subject};
use crate::cgroup::{self, Cgroup, CgroupError};
use crate::probes::pinned::PinError;
use crate::probes::{LoadSettings, ProbeError, Probes, Scope};
use crate::selftest::{self, WitnessCheck};
use crate::witness;

/// Loads the programs and attaches them to the audited cgroup, or goes on with those that are
/// pinned. Returns whether they were.
///
/// # Errors
///
/// When the kernel refuses, or what is pinned is of another audit.
pub(super) fn probes(
    load: &LoadSettings,
    audited: &Path,
    subject: &Subject,
) -> Result<(Probes, bool), StartError> {
    let Some(probes) = Probes::resume(load)? else {
        return Ok((attach(load, audited, subject)?, false));
    };
    if let (Subject::Processes { pids, .. }, Scope::Processes) = (subject, load.scope)
        && !probes.has_target(pids)
    {
        let pin = load.pin.clone().unwrap_or_default();
        return Err(ProbeError::from(PinError::Other(pin)).into());
    }
    Ok((probes, true))
}

/// Loads the programs, tries them in a cgroup of the self-test, and attaches them to the audited
/// one: what it does is counted from then on.
fn attach(load: &LoadSettings, audited: &Path, subject: &Subject) -> Result<Probes, StartError> {
    let mut probes = Probes::load(load)?;
    probes.attach_processes()?;
    let cgroup = selftest_cgroup(audited)?;
    probes.attach(cgroup::open(cgroup.path())?.as_fd())?;
    selftest::run(&mut probes, &cgroup, WitnessCheck::Required)?;
    probes.detach();
    probes.reset_counts()?;
    probes.attach(cgroup::open(audited)?.as_fd())?;
    match (subject, load.scope) {
        (_, Scope::Cgroup) => probes.begin_adopting()?,
        (Subject::Processes { pids, .. }, _) => {
            for process in pids {
                probes.add_target(*process)?;
            }
        }
        (Subject::Command | Subject::Cgroup(_), _) => {}
    }
    probes.pin(load)?;
    Ok(probes)
}

/// Makes a cgroup for a self-test below the audited one.
pub(super) fn selftest_cgroup(audited: &Path) -> Result<Cgroup, CgroupError> {
    if cgroup::is_frozen(audited) {
        return Err(CgroupError::Frozen(audited.to_owned()));
    }
    Cgroup::create_below(audited.to_owned(), CGROUP_NAME)
}

/// Returns the internet sockets of this process that a command inherits from it.
pub(super) fn inherited(probes: &mut Probes) -> Result<Vec<ForeignSocket>, ProbeError> {
    let mut foreign_sockets = Vec::new();
    let own = std::process::id();
    witness::foreign_sockets(probes.walk()?, |foreign| {
        if foreign.holder.pid == own && !closes_on_exec(foreign.holder.fd) {
            foreign_sockets.push(foreign);
        }
    })
    .map_err(ProbeError::Witness)?;
    Ok(foreign_sockets)
}

/// Whether a descriptor of this process is closed on exec (`O_CLOEXEC` in proc_pid_fdinfo(5)).
fn closes_on_exec(fd: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & OFlags::CLOEXEC.bits() != 0)
}
