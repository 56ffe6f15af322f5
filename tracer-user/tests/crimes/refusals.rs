//! Commands that are not executed, and tracers without the privileges that they need.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Failed, Trial};

use crate::case;
use crate::commands::{status_of, tracer};

const CANNOT_TRACE: i32 = 5;
const NOBODY: u32 = 65534;

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
    let setpriv = skipped || case::lacks("setpriv");
    let unshare = skipped || case::lacks("unshare");
    vec![
        privileged(
            "a_command_that_is_not_executed_has_no_verdict",
            a_command_that_is_not_executed_has_no_verdict,
        ),
        privileged(
            "a_script_without_interpreter_runs_in_a_shell",
            a_script_without_interpreter_runs_in_a_shell,
        ),
        privileged(
            "the_command_has_the_signals_and_descriptors_of_a_shell",
            the_command_has_the_signals_and_descriptors_of_a_shell,
        ),
        privileged(
            "a_missing_capability_is_named",
            a_missing_capability_is_named,
        )
        .with_ignored_flag(setpriv),
        privileged("a_user_namespace_is_named", a_user_namespace_is_named)
            .with_ignored_flag(unshare),
        privileged(
            "an_ordinary_user_audits_in_a_cgroup_of_its_own",
            an_ordinary_user_audits_in_a_cgroup_of_its_own,
        )
        .with_ignored_flag(setpriv || case::lacks("setcap")),
    ]
}

/// Makes an executable file.
fn executable(folder: &Path, name: &str, content: &[u8]) -> std::io::Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, content)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn a_command_that_is_not_executed_has_no_verdict() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let plain = folder.path().join("plain");
    fs::write(&plain, "")?;
    let by_plain = format!("#!{}\n", plain.display());
    // The header of a program for a machine that does not exist.
    let foreign = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xff\xff\x01\0\0\0";
    let commands: [(&str, &[u8], i32, &str); 3] = [
        (
            "interpreted",
            b"#!/no/such/interpreter -x\n",
            127,
            "/no/such/interpreter",
        ),
        ("forbidden", by_plain.as_bytes(), 126, "permissions"),
        ("foreign", foreign, 126, "no program for this machine"),
    ];
    let json = folder.path().join("report.json");
    for (name, content, status, reason) in commands {
        let path = executable(folder.path(), name, content)?;
        let mut audit = tracer();
        audit.args(["run", "--for", "30s", "--json"]).arg(&json);
        let text = status_of(audit.arg("--").arg(&path), status)?;
        if !text.contains(name) || !text.contains(reason) || text.contains("verdict") {
            return Err(text.into());
        }
    }
    if json.exists() {
        return Err("a report was written".into());
    }
    Ok(())
}

fn a_script_without_interpreter_runs_in_a_shell() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let script = executable(folder.path(), "script", b"exit $(($1 + 1))\n")?;
    let empty = executable(folder.path(), "empty", b"")?;
    status_of(tracer().args(["run", "--"]).arg(script).arg("41"), 42)?;
    status_of(tracer().args(["run", "--"]).arg(empty), 0)?;
    Ok(())
}

fn the_command_has_the_signals_and_descriptors_of_a_shell() -> Result<(), Failed> {
    let output_of = |command: &mut Command| -> Result<String, Failed> {
        Ok(String::from_utf8_lossy(&command.output()?.stdout).into_owned())
    };
    let open = output_of(Command::new("ls").arg("/proc/self/fd"))?;
    let audited = output_of(tracer().args(["run", "--", "ls", "/proc/self/fd"]))?;
    let ignored = ["run", "--", "grep", "SigIgn", "/proc/self/status"];
    let ignored = output_of(tracer().args(ignored))?;
    let signals = u64::from_str_radix(ignored.trim_start_matches("SigIgn:").trim(), 16)?;
    let pipe = 1 << (rustix::process::Signal::PIPE.as_raw() - 1);
    if audited != open || signals & pipe != 0 {
        return Err(format!("{audited}{open}{ignored}").into());
    }
    Ok(())
}

/// Starts the tracer without these capabilities.
fn without(capabilities: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set={capabilities}"));
    command.arg(env!("CARGO_BIN_EXE_tracer")).args(arguments);
    command.env_remove("RUST_LOG");
    command
}

fn a_missing_capability_is_named() -> Result<(), Failed> {
    const RUN: [&str; 3] = ["run", "--", "true"];
    let verifier = "R1=ctx()";
    for (name, without_it) in [
        ("CAP_PERFMON", "-perfmon,-sys_admin"),
        ("CAP_BPF", "-bpf,-sys_admin"),
        ("CAP_NET_ADMIN", "-net_admin,-sys_admin"),
    ] {
        let text = status_of(&mut without(without_it, &RUN), CANNOT_TRACE)?;
        let is_short = text.lines().count() == 2 && !text.contains(verifier);
        let fixes = ["setcap cap_bpf", "AmbientCapabilities=", "securityContext"];
        let has_fixes = fixes.iter().all(|fix| text.contains(fix));
        if !is_short || !has_fixes || !text.contains(&format!("{name} is missing")) {
            return Err(text.into());
        }
        let doctor = without(without_it, &["doctor"]).output()?;
        let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
        if !doctor.contains(&format!("{name} is missing")) || doctor.contains(verifier) {
            return Err(doctor.into());
        }
    }
    let mut logged = without("-perfmon,-sys_admin", &RUN);
    let text = status_of(logged.env("RUST_LOG", "debug"), CANNOT_TRACE)?;
    if !text.contains(verifier) {
        return Err(text.into());
    }
    Ok(())
}

fn a_user_namespace_is_named() -> Result<(), Failed> {
    let tracer = env!("CARGO_BIN_EXE_tracer");
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user", tracer, "run", "--", "true"]);
    let text = status_of(&mut inside, CANNOT_TRACE)?;
    let wanted = "sudo tracer run -- unshare -Ur COMMAND";
    if !text.contains("this is a user namespace") || !text.contains(wanted) {
        return Err(text.into());
    }
    // What it says works.
    let mut outside = Command::new(tracer);
    outside.args(["run", "--", "unshare", "-Ur", "true"]);
    status_of(&mut outside, 0)?;
    Ok(())
}

/// As `systemd-run --user --scope -p Delegate=yes` does it, for a file with capabilities.
fn an_ordinary_user_audits_in_a_cgroup_of_its_own() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let copy = folder.path().join("tracer");
    fs::copy(env!("CARGO_BIN_EXE_tracer"), &copy)?;
    let capabilities = "cap_bpf,cap_perfmon,cap_net_admin+ep";
    let given = Command::new("setcap")
        .arg(capabilities)
        .arg(&copy)
        .status()?;
    let name = format!("watertight-test-{}", std::process::id());
    let cgroup = tracer_user::cgroup::mount()?.join(name);
    fs::create_dir(&cgroup)?;
    for delegated in ["", "cgroup.procs", "cgroup.subtree_control"] {
        chown(cgroup.join(delegated), Some(NOBODY), Some(NOBODY))?;
    }
    let user = "exec setpriv --reuid=65534 --regid=65534 --clear-groups";
    let enter = format!("echo $$ > {}/cgroup.procs; {user}", cgroup.display());
    let audited = format!("{enter} {} run -- id -u", copy.display());
    let output = Command::new("sh")
        .args(["-c", &audited])
        .current_dir("/")
        .output();
    fs::remove_dir(&cgroup)?;
    let output = output?;
    let is_clean = String::from_utf8_lossy(&output.stderr).contains("clean");
    if !given.success() || output.stdout != b"65534\n" || !is_clean {
        return Err(format!("{given}, {output:?}").into());
    }
    Ok(())
}
