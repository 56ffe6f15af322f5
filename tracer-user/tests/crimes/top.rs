//! `tracer top`: that it lists a program that leaks, with its numbers, and leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::attached::{Fixture, TestCgroup};
use crate::case::{self, expect};
use crate::fixtures::top::{CLOSE_WAIT, DEAD};

const CANNOT_TRACE: i32 = 5;

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
    let lacks = |program| skipped || case::lacks(program);
    vec![
        privileged(
            "top_names_a_program_that_leaks",
            top_names_a_program_that_leaks,
        ),
        privileged(
            "top_tells_visitors_by_listener",
            top_tells_visitors_by_listener,
        ),
        privileged("top_attaches_nothing", top_attaches_nothing)
            .with_ignored_flag(lacks("bpftool")),
        privileged("top_refreshes_until_q", top_refreshes_until_q)
            .with_ignored_flag(lacks("script")),
        privileged("top_says_what_is_missing", top_says_what_is_missing)
            .with_ignored_flag(lacks("setpriv")),
    ]
}

fn tracer() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tracer"))
}

fn report(options: &[&str]) -> Result<Value, Failed> {
    let output = tracer()
        .args(["top", "--once", "--json"])
        .args(options)
        .output()?;
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    expect(&output.status.code(), &Some(0), &printed)?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Returns the rows of a process in one direction.
fn rows<'a>(report: &'a Value, program: &Fixture, direction: &str) -> Vec<&'a Value> {
    let rows = report["rows"].as_array().into_iter().flatten();
    rows.filter(|row| row["pid"] == program.pid() && row["direction"] == direction)
        .collect()
}

fn top_names_a_program_that_leaks() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("top")?;
    let program = cgroup.start("leaks_for_top")?;
    let report = report(&["--all"])?;
    let check = || {
        expect(&report["schema"], &"watertight.top/1".into(), "schema")?;
        let dialed = rows(&report, &program, "dialed");
        let [row] = dialed[..] else {
            return Err(format!("{} rows", dialed.len()));
        };
        let number = |name: &str| row[name].as_i64().unwrap_or(i64::MIN);
        expect(&number("close_wait"), &CLOSE_WAIT, "in CLOSE_WAIT")?;
        expect(&number("close_wait_kept"), &CLOSE_WAIT, "kept there")?;
        expect(&number("dead"), &DEAD, "dead")?;
        expect(&number("dead_kept"), &DEAD, "kept dead")?;
        expect(&row["protocol"], &"tcp".into(), "protocol")?;
        expect(&row["idle"], &Value::Null, "idle")?;
        // It opens one in 100 ms, and a dup of each is no other socket.
        let growth = number("growth");
        expect(&(3..=20).contains(&growth), &true, "growth")?;
        expect(
            &number("growth_since_start"),
            &growth,
            "growth since the start",
        )?;
        let quiet = number("quiet");
        expect(&(quiet >= CLOSE_WAIT), &true, "quiet")?;
        expect(
            &(number("open") - quiet - growth),
            &DEAD,
            "dead are not quiet",
        )?;
        let attach = format!("tracer attach --pid {} --for 5m", program.pid());
        expect(&report["attach"], &attach.into(), "the next command")
    };
    check().map_err(|error| format!("{error}\n{report:#}").into())
}

fn top_tells_visitors_by_listener() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("top-visitors")?;
    let program = cgroup.start("leaks_for_top")?;
    let report = report(&["--all"])?;
    let accepted = rows(&report, &program, "accepted");
    let check = || {
        let [row] = accepted[..] else {
            return Err(format!("{} rows", accepted.len()));
        };
        let listener = row["target"].as_str().unwrap_or_default();
        let dialed = rows(&report, &program, "dialed");
        expect(
            &dialed[0]["target"],
            &listener.into(),
            "where both ends are",
        )?;
        expect(&(row["quiet"].as_i64() > Some(0)), &true, "quiet visitors")?;
        expect(&row["close_wait"], &0.into(), "none is in CLOSE_WAIT")?;
        let listening = rows(&report, &program, "listening");
        expect(&listening[0]["open"], &1.into(), "listeners")
    };
    check().map_err(|error| format!("{error}\n{report:#}").into())
}

/// What a process has of eBPF: the types of its links, and the ids of its programs.
fn bpf_objects(pid: u32) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut links, mut programs) = (BTreeSet::new(), BTreeSet::new());
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    for descriptor in descriptors.into_iter().flatten().flatten() {
        let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(":\t")) {
            match key {
                "link_type" => links.insert(value.to_owned()),
                "prog_id" => programs.insert(value.to_owned()),
                _ => false,
            };
        }
    }
    (links, programs)
}

fn is_loaded(program: &str) -> Result<bool, Failed> {
    let mut show = Command::new("bpftool");
    let shown = show.args(["prog", "show", "id", program]).output()?;
    Ok(shown.status.success())
}

fn top_attaches_nothing() -> Result<(), Failed> {
    let mut top = tracer()
        .args(["top", "--once", "--json"])
        .stdout(Stdio::null())
        .spawn()?;
    let (mut links, mut programs) = (BTreeSet::new(), BTreeSet::new());
    while top.try_wait()?.is_none() {
        let (its_links, its_programs) = bpf_objects(top.id());
        links.extend(its_links);
        programs.extend(its_programs);
    }
    // A walk that is being read is a link of this type.
    links.remove("iter");
    expect(&links, &BTreeSet::new(), "links")?;
    let [witness] = &programs.into_iter().collect::<Vec<_>>()[..] else {
        return Err("top has loaded more or less than the witness".into());
    };
    // The kernel frees a program a moment after its last user.
    for _ in 0..100 {
        if !is_loaded(witness)? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err("the witness is left behind".into())
}

fn top_refreshes_until_q() -> Result<(), Failed> {
    let command = format!("{} top", env!("CARGO_BIN_EXE_tracer"));
    let keys = "sleep 4.5; printf q";
    let typed = format!("({keys}; sleep 5) | script -qec '{command}' /dev/null");
    let output = Command::new("timeout")
        .args(["20", "sh", "-c", &typed])
        .env("TERM", "xterm")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let check = || {
        expect(&output.status.code(), &Some(0), "exit status")?;
        let (screen, after) = text
            .split_once("\u{1b}[?1049l")
            .ok_or("the screen was not restored")?;
        expect(&screen.contains("\u{1b}[?1049h"), &true, "another screen")?;
        expect(&screen.contains("look 2 after"), &true, "the second look")?;
        expect(&screen.contains("look 3 after"), &true, "the third look")?;
        expect(&after.contains("internet sockets of"), &true, "what stays")
    };
    check().map_err(|error: String| format!("{error}\n{text}").into())
}

fn top_says_what_is_missing() -> Result<(), Failed> {
    let output = Command::new("setpriv")
        .arg("--bounding-set=-perfmon,-sys_admin")
        .arg(env!("CARGO_BIN_EXE_tracer"))
        .args(["top", "--once"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    expect(&output.status.code(), &Some(CANNOT_TRACE), &text)?;
    expect(&text.contains("CAP_PERFMON is missing"), &true, &text).map_err(Into::into)
}
