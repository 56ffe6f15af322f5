//! Commands that are not executed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Failed, Trial};

use crate::commands::{status_of, tracer};

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
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
