//! The capabilities that tracing needs, and the user namespace that they must be held in.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use caps::{CapSet, Capability};

use super::Check;

/// The inode of the initial user namespace (`PROC_USER_INIT_INO`, linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// The capabilities, and what for.
const NEEDED: [(Capability, &str); 3] = [
    (
        Capability::CAP_BPF,
        "load eBPF programs and make their maps",
    ),
    (
        Capability::CAP_PERFMON,
        "read kernel structs from eBPF (the witness)",
    ),
    (
        Capability::CAP_NET_ADMIN,
        "load and attach socket programs to a cgroup",
    ),
];

const IN_USER_NAMESPACE: &str = "this is a user namespace, whose capabilities are none for eBPF";

/// What an ordinary user does: the capabilities come with the file, and the cgroup is the user's.
const AS_USER: &str = "without root: setcap cap_bpf,cap_perfmon,cap_net_admin+ep TRACER, then \
     systemd-run --user --scope -p Delegate=yes TRACER run -- COMMAND";

fn fix_for_user_namespace() -> String {
    format!(
        "start the tracer outside of the namespace, as root; the command may enter one: sudo \
         tracer run -- unshare -Ur COMMAND; {AS_USER}"
    )
}

fn fix_for_capabilities() -> String {
    format!(
        "run as root (sudo -E); {AS_USER}; in a systemd unit: AmbientCapabilities=CAP_BPF \
         CAP_PERFMON CAP_NET_ADMIN; in Kubernetes: securityContext.capabilities.add: [BPF, \
         PERFMON, NET_ADMIN]; in Docker: --cap-add BPF --cap-add PERFMON --cap-add NET_ADMIN"
    )
}

/// What lets a process make cgroups.
pub(super) fn fix_for_cgroup() -> String {
    format!("run as root (sudo -E); {AS_USER}")
}

/// Checks the user namespace and the capabilities.
pub(super) fn check() -> Check {
    if is_in_user_namespace() {
        return Check::missing("privileges", IN_USER_NAMESPACE, fix_for_user_namespace());
    }
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    match missing(&held) {
        None => {
            let names: Vec<String> = NEEDED.iter().map(|(it, _)| it.to_string()).collect();
            Check::ok("privileges", names.join(", "))
        }
        Some(missing) => Check::missing("privileges", missing, fix_for_capabilities()),
    }
}

/// Whether this process is in another user namespace than the initial one. Capabilities there do
/// not count for bpf(2).
fn is_in_user_namespace() -> bool {
    fs::metadata("/proc/self/ns/user").is_ok_and(|of| of.ino() != INITIAL_USER_NAMESPACE)
}

/// Names what is missing.
fn missing(held: &HashSet<Capability>) -> Option<String> {
    // CAP_SYS_ADMIN includes the first two, as before Linux 5.8.
    let admin = held.contains(&Capability::CAP_SYS_ADMIN);
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|(capability, _)| {
            !(held.contains(capability) || admin && *capability != Capability::CAP_NET_ADMIN)
        })
        .map(|(capability, why)| format!("{capability} is missing, to {why}"))
        .collect();
    (!missing.is_empty()).then(|| missing.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN};
        let of = |held: &[Capability]| missing(&held.iter().copied().collect());
        assert_eq!(of(&[CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN]), None);
        assert_eq!(of(&[CAP_SYS_ADMIN, CAP_NET_ADMIN]), None);
        let perfmon = of(&[CAP_BPF, CAP_NET_ADMIN]).unwrap();
        assert!(perfmon.starts_with("CAP_PERFMON is missing"), "{perfmon}");
        assert!(!perfmon.contains("CAP_BPF"));
        assert!(of(&[CAP_SYS_ADMIN]).unwrap().contains("CAP_NET_ADMIN"));
    }
}
