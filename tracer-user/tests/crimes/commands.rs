//! What the command does besides judging.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::case;

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
    vec![
        privileged("doctor_passes", doctor_passes),
        privileged(
            "counts_are_served_while_it_runs",
            counts_are_served_while_it_runs,
        ),
        privileged("nothing_is_left_behind", nothing_is_left_behind),
        privileged(
            "an_early_signal_leaves_nothing",
            an_early_signal_leaves_nothing,
        ),
        privileged(
            "a_command_may_read_the_terminal",
            a_command_may_read_the_terminal,
        )
        .with_ignored_flag(skipped || case::lacks("script")),
        privileged("a_detached_hook_is_named", a_detached_hook_is_named)
            .with_ignored_flag(skipped || case::lacks("bpftool")),
        Trial::test("usage_errors_end_with_2", usage_errors_end_with_2),
    ]
}

fn tracer() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tracer"))
}

fn doctor_passes() -> Result<(), Failed> {
    let output = tracer().arg("doctor").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || text.contains("missing") || !text.contains("self-test") {
        return Err(text.into());
    }
    Ok(())
}

fn counts_are_served_while_it_runs() -> Result<(), Failed> {
    let mut audit = tracer()
        .args(["run", "--listen", "127.0.0.1:0", "--", "sleep", "30"])
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = audit.stderr.take().ok_or("no pipe")?;
    let mut lines = BufReader::new(stderr).lines();
    let line = lines.next().ok_or("it said nothing")??;
    let address = line
        .strip_prefix("metrics    http://")
        .and_then(|rest| rest.strip_suffix("/metrics"))
        .ok_or_else(|| format!("no address in {line:?}"))?
        .to_owned();
    let mut socket = TcpStream::connect(&address)?;
    write!(
        socket,
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let pid = rustix::process::Pid::from_child(&audit);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = audit.wait()?;
    for counter in [
        "watertight_audit_sockets 0",
        "watertight_audit_sockets_created_total 0",
        "watertight_audit_records_lost_total 0",
    ] {
        if !answer.contains(counter) {
            return Err(format!("no {counter:?} in {answer}").into());
        }
    }
    if !status.success() {
        return Err(format!("SIGTERM ended it with {status}").into());
    }
    Ok(())
}

fn nothing_is_left_behind() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("report.json");
    tracer()
        .args(["run", "--json"])
        .arg(&json)
        .args(["--", "true"])
        .output()?;
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
    let cgroup = report["target"]["cgroup"].as_str().ok_or("no cgroup")?;
    if Path::new(cgroup).exists() {
        return Err(format!("{cgroup} is still there").into());
    }
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&json, &link)?;
    tracer()
        .args(["run", "--json"])
        .arg(&link)
        .args(["--", "true"])
        .output()?;
    if !link.is_symlink() {
        return Err("a link was replaced by the report".into());
    }
    let files: Vec<_> = std::fs::read_dir(directory.path())?.collect();
    if files.len() != 2 {
        return Err(format!("files beside the report: {files:?}").into());
    }
    Ok(())
}

fn an_early_signal_leaves_nothing() -> Result<(), Failed> {
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    let below = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or("no cgroup v2")?;
    let parent = tracer_user::cgroup::mount()?.join(below);
    for delay_ms in (0..300).step_by(25) {
        let mut audit = tracer()
            .args(["run", "--", "sleep", "30"])
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        let pid = rustix::process::Pid::from_child(&audit);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        audit.wait()?;
        let left = parent.join(format!("watertight-{}-0", audit.id()));
        if left.exists() {
            return Err(format!("{} after {delay_ms} ms", left.display()).into());
        }
    }
    Ok(())
}

/// `script` gives the tracer a terminal and types what it reads.
fn a_command_may_read_the_terminal() -> Result<(), Failed> {
    let line = format!(
        "{} run -- head -n 1; echo status $?; head -n 1",
        env!("CARGO_BIN_EXE_tracer")
    );
    let mut script = Command::new("timeout")
        .args(["20", "script", "-q", "-c", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    script
        .stdin
        .take()
        .ok_or("no pipe")?
        .write_all(b"first\nsecond\n")?;
    let output = script.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    // Once as it is typed, once as it is read; and the shell has its terminal back afterwards.
    let read = |word| text.lines().filter(|line| *line == word).count() == 2;
    if !output.status.success() || !text.contains("status 0") || !read("first") || !read("second") {
        return Err(format!("{}: {text}", output.status).into());
    }
    Ok(())
}

fn a_detached_hook_is_named() -> Result<(), Failed> {
    let mut audit = tracer()
        .args(["run", "--listen", "127.0.0.1:0", "--", "sleep", "30"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = audit.stderr.take().ok_or("no pipe")?;
    let mut stderr = BufReader::new(stderr);
    // It says so once everything is attached.
    stderr.read_line(&mut String::new())?;
    let link = release_link(audit.id())?;
    let detached = Command::new("bpftool")
        .args(["link", "detach", "id", &link])
        .status()?;
    let pid = rustix::process::Pid::from_child(&audit);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = audit.wait()?;
    let mut text = String::new();
    stderr.read_to_string(&mut text)?;
    audit
        .stdout
        .take()
        .ok_or("no pipe")?
        .read_to_string(&mut text)?;
    let wanted = format!("sock_release was detached during the audit (link {link})");
    if !detached.success() || status.code() != Some(4) || !text.contains(&wanted) {
        return Err(format!("{detached}, {status}, {text}").into());
    }
    Ok(())
}

/// Finds the link of the release hook (`BPF_CGROUP_INET_SOCK_RELEASE`, 34) among the tracer's descriptors.
fn release_link(tracer: u32) -> Result<String, Failed> {
    for entry in std::fs::read_dir(format!("/proc/{tracer}/fdinfo"))? {
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let field = |name| {
            text.lines()
                .find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
        };
        if field("attach_type:").as_deref() == Some("34") {
            return field("link_id:").ok_or_else(|| "a link without id".into());
        }
    }
    Err("no link of the release hook".into())
}

fn usage_errors_end_with_2() -> Result<(), Failed> {
    let wrong: [&[&str]; 5] = [
        &["run"],
        &["run", "--", "no-such-command"],
        &["run", "--grace", "soon", "--", "true"],
        &["run", "--deny", "leak", "--", "true"],
        &["run", "--json", "/no/such/folder/report.json", "--", "true"],
    ];
    for arguments in wrong {
        let output = tracer().args(arguments).output()?;
        if output.status.code() != Some(2) || output.stderr.is_empty() {
            return Err(format!("{arguments:?} ended with {output:?}").into());
        }
    }
    Ok(())
}
