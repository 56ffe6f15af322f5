//! `tracer doctor`: what this kernel, these privileges and mounts allow, line by line, with the fix.

use std::fs;
use std::io;
use std::path::Path;

use anstyle::{AnsiColor, Style};
use caps::{CapSet, Capability};

use crate::audit::{Audit, Settings, StartError, kernel_release};
use crate::cgroup::{self, CgroupError};
use crate::probes::{KERNEL_BTF, Limits, ProbeError};
use crate::selftest::SelfTestError;
use tracer_core::ledger::{PileLimits, Timeouts};
use tracer_core::verdict::Levels;

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Each capability that tracing needs, with what fails without it.
const CAPABILITIES: [(Capability, &str); 3] = [
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

/// One line of the examination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub what: &'static str,
    /// What was found, or why it is not there.
    pub found: String,
    /// `None` when all is well; otherwise what to do.
    pub fix: Option<String>,
}

impl Check {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            found: found.into(),
            fix: None,
        }
    }

    fn bad(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }
}

/// Looks at everything that tracing needs, and last tries it: programs are loaded and attached to a cgroup of their own, where
/// one connection is opened and released.
#[must_use]
pub fn examine() -> Vec<Check> {
    let mut checks = vec![kernel(), btf(), privileges(), hierarchy()];
    checks.push(trial());
    checks
}

/// Whether an examination found nothing missing.
#[must_use]
pub fn passed(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.fix.is_none())
}

/// Returns the examination with ANSI styles.
#[must_use]
pub fn render(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let (style, mark) = if check.fix.is_some() {
            (BAD, "missing")
        } else {
            (GOOD, "ok")
        };
        text += &format!(
            "{style}{mark:<8}{style:#} {:<12} {}\n",
            check.what, check.found
        );
        if let Some(fix) = &check.fix {
            text += &format!("         {:<12} fix: {fix}\n", "");
        }
    }
    text
}

/// The first kernel with `bpf_sock_from_file` and socket storage for tracing programs (5.11), with atomics that return the
/// value before (5.12), and with `bpf_get_current_task_btf` for programs of a cgroup (5.15).
const FLOOR: (u32, u32) = (5, 15);

const TOO_OLD: &str = "run Linux 5.15 or later: older ones do not tell the programs of a cgroup what task they run for";

fn kernel() -> Check {
    let release = kernel_release();
    if is_too_old(&release) {
        return Check::bad("kernel", format!("Linux {release}"), TOO_OLD);
    }
    Check::good("kernel", format!("Linux {release}"))
}

fn is_too_old(release: &str) -> bool {
    let mut numbers = release
        .split(['.', '-'])
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < FLOOR
}

/// Says that the kernel is too old, if that is why it refused a map or a program: what its verifier says of
/// instructions that it does not know helps nobody.
fn outdated(error: &StartError) -> Option<String> {
    let refused = matches!(
        error,
        StartError::Probes(ProbeError::Program { .. } | ProbeError::Object(_))
    );
    let release = kernel_release();
    // Root only: a refusal for lack of privileges is told as such.
    let permitted = || privileges().fix.is_none();
    if refused && is_too_old(&release) && permitted() {
        return Some(format!("Linux {release} is too old"));
    }
    None
}

fn btf() -> Check {
    match fs::metadata(KERNEL_BTF) {
        Ok(meta) => Check::good("BTF", format!("{KERNEL_BTF}, {} KiB", meta.len() / 1024)),
        Err(error) => Check::bad(
            "BTF",
            format!("{KERNEL_BTF}: {error}"),
            "run a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current distribution's is); in a container, mount /sys",
        ),
    }
}

fn privileges() -> Check {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    // CAP_SYS_ADMIN stood for the first two before Linux 5.8 and still does.
    let admin = held.contains(&Capability::CAP_SYS_ADMIN);
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(capability, _)| {
            !(held.contains(capability) || admin && *capability != Capability::CAP_NET_ADMIN)
        })
        .map(|(capability, why)| format!("{capability} to {why}"))
        .collect();
    if missing.is_empty() {
        let names: Vec<String> = CAPABILITIES.iter().map(|(c, _)| c.to_string()).collect();
        return Check::good("privileges", names.join(", "));
    }
    Check::bad(
        "privileges",
        format!("lacks {}", missing.join("; ")),
        "run as root (sudo -E), or in a container add BPF, PERFMON and NET_ADMIN to its capabilities",
    )
}

fn hierarchy() -> Check {
    match cgroup::mount() {
        Ok(path) => Check::good("cgroup v2", path.display().to_string()),
        Err(error) => Check::bad("cgroup v2", error.to_string(), fix_for_cgroup(&error)),
    }
}

fn fix_for_cgroup(error: &CgroupError) -> String {
    match error {
        CgroupError::NotMounted => {
            "mount it, at the host if this is a container: mount -t cgroup2 none /sys/fs/cgroup/unified".to_owned()
        }
        CgroupError::NoMembership => "mount /proc".to_owned(),
        CgroupError::Taken => "let other audits end first".to_owned(),
        CgroupError::Io { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => "run as root (sudo -E)".to_owned(),
            io::ErrorKind::ReadOnlyFilesystem => {
                "mount the cgroup v2 hierarchy writable: in a container, mount the host's /sys/fs/cgroup read-write".to_owned()
            }
            _ => "make the cgroup v2 hierarchy writable for this process".to_owned(),
        },
    }
}

fn trial() -> Check {
    let settings = Settings {
        timeouts: Timeouts {
            grace_ns: u64::MAX,
            idle_ns: u64::MAX,
            piles: PileLimits {
                after_ns: u64::MAX,
                growth: usize::MAX,
            },
        },
        levels: Levels::default(),
        limits: Limits::default(),
        stacks: false,
    };
    match Audit::start(&settings) {
        Ok(_) => Check::good(
            "self-test",
            "every hook saw one connection open, be annotated and be released",
        ),
        Err(error) => match outdated(&error) {
            Some(found) => Check::bad("self-test", found, TOO_OLD),
            None => Check::bad("self-test", error.to_string(), fix(&error)),
        },
    }
}

/// Says what to do about an audit that cannot start.
#[must_use]
pub fn fix(error: &StartError) -> String {
    match error {
        StartError::Cgroup(error) => fix_for_cgroup(error),
        StartError::Probes(error) | StartError::SelfTest(SelfTestError::Probes(error)) => {
            fix_for_probes(error)
        }
        StartError::SelfTest(SelfTestError::ProbeChild(_)) => {
            "bring up loopback in this network namespace: ip link set lo up".to_owned()
        }
        StartError::SelfTest(SelfTestError::Blind(_)) => {
            "another program on an ancestor cgroup may take these calls first: bpftool cgroup tree"
                .to_owned()
        }
    }
}

fn fix_for_probes(error: &ProbeError) -> String {
    match error {
        ProbeError::NoBtf(_) => "run a kernel built with CONFIG_DEBUG_INFO_BTF=y".to_owned(),
        ProbeError::Offset(_) => {
            "this kernel's structs are not as expected: report it with the kernel's release"
                .to_owned()
        }
        ProbeError::NoNamespace(_) | ProbeError::AttachState(_) => "mount /proc".to_owned(),
        ProbeError::Missing(_) => "build again from a clean checkout".to_owned(),
        ProbeError::Object(_)
        | ProbeError::Program { .. }
        | ProbeError::Map { .. }
        | ProbeError::Witness(_) => match error.os_error() {
            Some(code) if is_refusal(code) => format!(
                "run as root (sudo -E); if it is root, {}",
                why_root_is_refused()
            ),
            Some(_) | None => "report it with the kernel's release and this message".to_owned(),
        },
    }
}

fn is_refusal(code: i32) -> bool {
    let errno = rustix::io::Errno::from_raw_os_error(code);
    errno == rustix::io::Errno::PERM || errno == rustix::io::Errno::ACCESS
}

fn why_root_is_refused() -> &'static str {
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        "the kernel is locked down to [confidentiality], under which eBPF may not read kernel memory: boot with lockdown=integrity or none"
    } else if Path::new("/.dockerenv").exists() {
        "the container lacks capabilities or its seccomp profile forbids bpf(2): add BPF, PERFMON and NET_ADMIN"
    } else {
        "its capabilities or a seccomp profile forbid bpf(2): give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    }
}

/// Returns what went wrong and what to do, in the words of `tracer doctor`.
#[must_use]
pub fn explain(error: &StartError) -> String {
    if let Some(found) = outdated(error) {
        return format!("cannot trace here: {found}: {TOO_OLD}");
    }
    format!("cannot trace here: {error}\nfix: {}", fix(error))
}
