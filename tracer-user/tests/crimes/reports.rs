//! What is reported: the summary, the JSON report and the metrics.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use libtest_mimic::{Failed, Trial};

use crate::case;

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
    vec![
        privileged(
            "counts_are_served_while_it_runs",
            counts_are_served_while_it_runs,
        ),
        privileged(
            "a_clean_summary_has_the_targets",
            a_clean_summary_has_the_targets,
        ),
        privileged(
            "without_sockets_nothing_is_judged",
            without_sockets_nothing_is_judged,
        ),
        privileged("programs_are_named_safely", programs_are_named_safely),
    ]
}

fn tracer() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tracer"))
}

fn counts_are_served_while_it_runs() -> Result<(), Failed> {
    let mut audit = tracer()
        .args(["run", "--listen", "127.0.0.1:0", "--", "sleep", "30"])
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = audit.stderr.take().ok_or("no pipe")?;
    let mut lines = BufReader::new(stderr).lines();
    let line = lines.next().ok_or("it printed nothing")??;
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

fn a_clean_summary_has_the_targets() -> Result<(), Failed> {
    let output = tracer()
        .args(["run", "--"])
        .arg(std::env::current_exe()?)
        .args([case::FIXTURE, "busy"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let is_target = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words.as_slice(), [target, "1", "1", "0", "-"] if target.starts_with("127.0.0.1:"))
    };
    if !text.contains("verdict    clean") || !text.lines().any(is_target) {
        return Err(text.into_owned().into());
    }
    Ok(())
}

fn without_sockets_nothing_is_judged() -> Result<(), Failed> {
    let output = tracer()
        .args(["run", "--json", "-", "--", "true"])
        .output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let note = "no internet socket was opened: nothing was judged";
    case::expect(&report["notes"], &vec![note].into(), "notes")?;
    case::expect(&report["verdict"], &"clean".into(), "verdict")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !text.contains(note) {
        return Err(text.into_owned().into());
    }
    Ok(())
}

/// A program whose file and `comm` would set a terminal's title.
fn programs_are_named_safely() -> Result<(), Failed> {
    let own = std::env::current_exe()?;
    // A hard link, so on the same file system.
    let directory = tempfile::tempdir_in(own.parent().ok_or("no folder")?)?;
    let program = directory.path().join("p\u{1b}]0;x\u{7}");
    std::fs::hard_link(&own, &program)?;
    let output = tracer()
        .args(["run", "--grace", "300ms", "--json", "-", "--"])
        .arg(&program)
        .args([case::FIXTURE, "close_wait_left_open"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The fixture prints, too.
    let start = text.find('{').ok_or("no report")?;
    let report: serde_json::Value = serde_json::from_str(text.get(start..).unwrap_or_default())?;
    let group = &report["groups"][0];
    let folder = directory.path().display();
    let executable = format!("{folder}/p\u{fffd}]0;x\u{fffd}");
    case::expect(
        &group["program"],
        &"p\u{fffd}]0;x\u{fffd}".into(),
        "program",
    )?;
    case::expect(&group["executable"], &executable.into(), "executable")?;
    Ok(())
}
