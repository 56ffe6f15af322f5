//! `tracer doctor`: whether this kernel, these privileges and mounts allow tracing, and how to fix
//! it.

mod privileges;

use std::{fs, io};

use anstyle::{AnsiColor, Style};
use tracer_core::ledger::Timeouts;
use tracer_core::verdict::Levels;

use crate::audit::{Audit, Settings, StartError, Subject, kernel_release};
use crate::cgroup::{self, CgroupError};
use crate::probes::{KERNEL_BTF, Limits, ProbeError};
use crate::selftest::SelfTestError;

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub what: &'static str,
    /// What was found, or why it is not there.
    pub found: String,
    /// What to do; `None` if nothing is missing.
    pub fix: Option<String>,
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            found: found.into(),
            fix: None,
        }
    }

    fn missing(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }
}

/// Checks everything that tracing needs. The last check is a self-test: it attaches the programs to
/// a cgroup of its own and opens and releases one connection there.
#[must_use]
pub fn run_checks() -> Vec<Check> {
    let mut checks = vec![kernel(), btf(), privileges::check(), cgroup_v2()];
    checks.push(self_test());
    checks
}

/// Whether nothing is missing.
#[must_use]
pub fn passed(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.fix.is_none())
}

/// Returns the results as text with ANSI styles.
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

/// The first kernel with `bpf_sock_from_file` and socket storage for tracing programs (5.11), with
/// atomics that return the value before (5.12), and with `bpf_get_current_task_btf` for programs of
/// a cgroup (5.15).
const FLOOR: (u32, u32) = (5, 15);

const TOO_OLD: &str = "run Linux 5.15 or later: on older kernels the programs of a cgroup cannot \
                       read the current task";

fn kernel() -> Check {
    let release = kernel_release();
    if is_too_old(&release) {
        return Check::missing("kernel", format!("Linux {release}"), TOO_OLD);
    }
    Check::ok("kernel", format!("Linux {release}"))
}

fn is_too_old(release: &str) -> bool {
    let mut numbers = release
        .split(['.', '-'])
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < FLOOR
}

/// Says that the kernel is too old, if that is why it refused a map or a program: the verifier's
/// message about unknown instructions does not help.
fn outdated(error: &StartError) -> Option<String> {
    let refused = matches!(
        error,
        StartError::Probes(ProbeError::Program { .. } | ProbeError::Object(_))
    );
    let release = kernel_release();
    // A refusal for lack of privileges is reported as such.
    let permitted = || privileges::check().fix.is_none();
    if refused && is_too_old(&release) && permitted() {
        return Some(format!("Linux {release} is too old"));
    }
    None
}

fn btf() -> Check {
    match fs::metadata(KERNEL_BTF) {
        Ok(meta) => Check::ok("BTF", format!("{KERNEL_BTF}, {} KiB", meta.len() / 1024)),
        Err(error) => Check::missing(
            "BTF",
            format!("{KERNEL_BTF}: {error}"),
            "run a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of all current distributions \
             are; in a container, mount /sys",
        ),
    }
}

fn cgroup_v2() -> Check {
    match cgroup::mount() {
        Ok(path) => Check::ok("cgroup v2", path.display().to_string()),
        Err(error) => Check::missing("cgroup v2", error.to_string(), fix_for_cgroup(&error)),
    }
}

fn fix_for_cgroup(error: &CgroupError) -> String {
    match error {
        CgroupError::NotMounted => {
            "mount it, for a container on the host: mount -t cgroup2 none /sys/fs/cgroup/unified"
                .to_owned()
        }
        CgroupError::NoMembership(_) => "mount /proc".to_owned(),
        CgroupError::Frozen(path) => format!(
            "thaw it, as by docker unpause or podman unpause: echo 0 > {}",
            path.join("cgroup.freeze").display()
        ),
        CgroupError::NoFreeName => "wait until other audits have ended".to_owned(),
        CgroupError::Io { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => privileges::fix_for_cgroup(),
            io::ErrorKind::ReadOnlyFilesystem => {
                "mount the cgroup v2 hierarchy writable; in a container, mount the host's \
                 /sys/fs/cgroup read-write"
                    .to_owned()
            }
            _ => "make the cgroup v2 hierarchy writable for this process".to_owned(),
        },
    }
}

fn self_test() -> Check {
    let settings = Settings {
        timeouts: Timeouts::NEVER,
        levels: Levels::default(),
        limits: Limits::default(),
        stacks: false,
        is_guard: false,
        pin: None,
    };
    match Audit::start(&settings, Subject::Command) {
        Ok(_) => Check::ok(
            "self-test",
            "every hook saw one connection being opened, annotated and released",
        ),
        Err(error) => match outdated(&error) {
            Some(found) => Check::missing("self-test", found, TOO_OLD),
            None => {
                let (found, fix) = diagnose(&error);
                Check::missing("self-test", found, fix)
            }
        },
    }
}

/// Says how to fix what keeps an audit from starting.
fn fix_for(error: &StartError) -> String {
    match error {
        StartError::Cgroup(error) => fix_for_cgroup(error),
        StartError::Probes(error) | StartError::SelfTest(SelfTestError::Probes(error)) => {
            fix_for_probes(error)
        }
        StartError::SelfTest(SelfTestError::ProbeChild(_)) => {
            "bring up loopback in this network namespace: ip link set lo up".to_owned()
        }
        StartError::SelfTest(SelfTestError::NotSeenBy(_)) => {
            "a program on a parent cgroup may take these calls first: bpftool cgroup tree"
                .to_owned()
        }
    }
}

fn fix_for_probes(error: &ProbeError) -> String {
    match error {
        ProbeError::NoBtf(_) => "run a kernel built with CONFIG_DEBUG_INFO_BTF=y".to_owned(),
        ProbeError::Offset(_) => {
            "report it with the kernel's release: its structs are not as expected".to_owned()
        }
        ProbeError::NoNamespace(_) | ProbeError::AttachState(_) => "mount /proc".to_owned(),
        ProbeError::Pin(_) => {
            "give --pin a directory of its own below a BPF file system, usually /sys/fs/bpf"
                .to_owned()
        }
        ProbeError::Missing(_) => "build again from a clean checkout".to_owned(),
        ProbeError::Object(_)
        | ProbeError::Program { .. }
        | ProbeError::Map { .. }
        | ProbeError::Witness(_) => match error.os_error() {
            Some(code) if is_refusal(code) => why_all_is_refused().to_owned(),
            Some(_) | None => "report it with the kernel's release, this message and what \
                               RUST_LOG=debug shows"
                .to_owned(),
        },
    }
}

fn is_refusal(code: i32) -> bool {
    let errno = rustix::io::Errno::from_raw_os_error(code);
    errno == rustix::io::Errno::PERM || errno == rustix::io::Errno::ACCESS
}

/// Says what else refuses, when no capability is missing.
fn why_all_is_refused() -> &'static str {
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        "the kernel is locked down to [confidentiality], where eBPF cannot read kernel memory: boot \
         with lockdown=integrity or none"
    } else {
        "no capability is missing: a seccomp profile or a security module forbids bpf(2); in \
         Kubernetes, securityContext.seccompProfile.type: Unconfined. If neither does, report it \
         with the kernel's release, this message and what RUST_LOG=debug shows"
    }
}

/// Returns what went wrong and how to fix it, as `tracer doctor` says it.
#[must_use]
pub fn explain(error: &StartError) -> String {
    if let Some(found) = outdated(error) {
        return format!("cannot trace here: {found}: {TOO_OLD}");
    }
    let (found, fix) = diagnose(error);
    format!("cannot trace here: {found}\nfix: {fix}")
}

/// Returns what keeps an audit from starting, and the fix. A refusal is told by the privilege that
/// is missing: the kernel's own message does not name it.
fn diagnose(error: &StartError) -> (String, String) {
    let privileges = privileges::check();
    match privileges.fix {
        Some(fix) if is_refused(error) => (privileges.found, fix),
        Some(_) | None => (error.to_string(), fix_for(error)),
    }
}

fn is_refused(error: &StartError) -> bool {
    let code = match error {
        StartError::Cgroup(CgroupError::Io { source, .. }) => source.raw_os_error(),
        StartError::Cgroup(_) => None,
        StartError::Probes(error) | StartError::SelfTest(SelfTestError::Probes(error)) => {
            error.os_error()
        }
        StartError::SelfTest(SelfTestError::ProbeChild(_) | SelfTestError::NotSeenBy(_)) => None,
    };
    code.is_some_and(is_refusal)
}
