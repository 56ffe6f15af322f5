//! What is odd about a target: it is removed, frozen, threaded or forks, or is audited twice. And
//! servers of other people under load.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::guarded::Guard;
use super::{Fixture, SHORT, TestCgroup, attach, judged, run, text};
use crate::case::{FIXTURE, expect, lacks};

const QUICK: [&str; 4] = ["--grace", "300ms", "--for", "2s"];

/// Longer than their slow answers take, so that no visitor that half-closed is served for longer.
const SERVERS: [&str; 9] = [
    "--grace",
    "2s",
    "--pile-up-after",
    "1s",
    "--stuck-after",
    "3s",
    "--deny",
    "stuck",
    "--for=1s",
];

pub(super) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
    let server = |name: &'static str, program| {
        let skipped = skipped || lacks(program);
        Trial::test(format!("attached_to_{name}"), || attached_to_a_server(name))
            .with_ignored_flag(skipped)
    };
    vec![
        privileged("attached_twice_at_once", attached_twice_at_once),
        privileged(
            "attached_to_what_forks_and_execs",
            attached_to_what_forks_and_execs,
        ),
        privileged("attached_to_what_is_removed", attached_to_what_is_removed),
        privileged("attached_to_threads", attached_to_threads),
        privileged("attached_to_what_is_frozen", attached_to_what_is_frozen),
        privileged("guarded_with_no_reader", guarded_with_no_reader),
        server("real_nginx", "nginx"),
        server("real_redis", "redis-server"),
        server("real_python_threads", "python3"),
        server("real_node", "node"),
    ]
}

fn attached_twice_at_once() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("twice")?;
    let program = cgroup.start("pile_for_long")?;
    let (path, pid) = (text(&cgroup.0)?, program.pid().to_string());
    let both = thread::scope(|scope| {
        let first = scope.spawn(|| attach(&["--cgroup", path], &SHORT));
        let second = scope.spawn(|| attach(&["--pid", &pid], &SHORT));
        [first.join(), second.join()]
    });
    for found in both {
        let found = found.map_err(|_| "it panicked")??;
        judged(&found, 3, &[("pile-up", 8)])?;
    }
    Ok(())
}

/// Among others, one of which leaks.
fn attached_to_what_forks_and_execs() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("forks")?;
    let _other = cgroup.start("pile_for_long")?;
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            "echo $$ > \"$0\"/cgroup.procs; while :; do timeout 0.3 \"$@\"; done",
        ])
        .arg(&cgroup.0)
        .arg(std::env::current_exe()?)
        .args([FIXTURE, "steady_load"]);
    let shell = Fixture::start(shell)?;
    let found = attach(&["--pid", &shell.pid().to_string()], &QUICK)?;
    judged(&found, 0, &[])?;
    let created = found.1["sockets"]["created"].as_u64();
    expect(&created.is_some_and(|count| count > 50), &true, "created").map_err(Into::into)
}

/// As a container's is, when it ends.
fn attached_to_what_is_removed() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("removed")?;
    let path = text(&cgroup.0)?.to_owned();
    let program = cgroup.start("steady_load")?;
    let audit = thread::spawn(move || {
        let options = ["--grace", "300ms", "--for", "30s"];
        attach(&["--cgroup", &path], &options).map_err(|error| format!("{error:?}"))
    });
    thread::sleep(Duration::from_secs(2));
    let removed = Instant::now();
    drop((program, cgroup));
    let (code, report) = audit.join().map_err(|_| "it panicked")??;
    let took = removed.elapsed();
    expect(&(took < Duration::from_secs(10)), &true, "it ends at once")?;
    expect(&code, &Some(4), "exit status")?;
    let reasons = ["the cgroup was removed during the audit"];
    expect(&report["reasons"], &Value::from(&reasons[..]), "reasons").map_err(Into::into)
}

fn attached_to_threads() -> Result<(), Failed> {
    let top = TestCgroup::create("threads")?;
    let below = TestCgroup::at(top.0.join("below"))?;
    fs::write(below.0.join("cgroup.type"), "threaded")?;
    let program = below.start("steady_load")?;
    for target in [
        ["--cgroup", text(&top.0)?],
        ["--cgroup", text(&below.0)?],
        ["--pid", &program.pid().to_string()],
    ] {
        let found = attach(&target, &["--grace", "300ms", "--for", "500ms"])?;
        judged(&found, 0, &[])?;
        let created = found.1["sockets"]["created"].as_u64();
        expect(&created.is_some_and(|count| count > 5), &true, "created")?;
    }
    // Innermost first.
    drop((program, below, top));
    Ok(())
}

fn attached_to_what_is_frozen() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("frozen")?;
    let _program = cgroup.start("steady_load")?;
    fs::write(cgroup.0.join("cgroup.freeze"), "1")?;
    thread::sleep(Duration::from_millis(100));
    let output = run(Command::new(env!("CARGO_BIN_EXE_tracer"))
        .args(["attach", "--cgroup", text(&cgroup.0)?])
        .args(QUICK));
    fs::write(cgroup.0.join("cgroup.freeze"), "0")?;
    let output = output?;
    let printed = String::from_utf8_lossy(&output.stderr);
    expect(&output.status.code(), &Some(5), &printed)?;
    expect(&printed.contains("is frozen"), &true, &printed)?;
    expect(&printed.contains("fix: thaw it"), &true, &printed)?;
    let found = attach(&["--cgroup", text(&cgroup.0)?], &QUICK)?;
    judged(&found, 0, &[])
}

/// As with `| head -1`.
fn guarded_with_no_reader() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("reader")?;
    let _program = cgroup.start("pile_for_long")?;
    let target = ["--cgroup", text(&cgroup.0)?];
    let mut guard = Guard::start(&target, &["--pile-up-after", "1s"])?;
    let found = guard.next()?;
    expect(&found["kind"], &"pile-up".into(), "kind")?;
    guard.lines = None;
    guard.says("cannot be printed any more")?;
    thread::sleep(Duration::from_secs(1));
    expect(&guard.guard.try_wait()?, &None, "it goes on")?;
    kill_process(Pid::from_child(&guard.guard), Signal::TERM)?;
    let (code, printed) = guard.wait()?;
    expect(&code, &Some(0), &printed)?;
    let times = printed.matches("cannot be printed any more").count();
    expect(&times, &1, &printed).map_err(Into::into)
}

/// No visitor is turned away, and nothing is denied.
fn attached_to_a_server(name: &str) -> Result<(), Failed> {
    let cgroup = TestCgroup::create(name)?;
    let program = cgroup.start(name)?;
    let found = attach(&["--cgroup", text(&cgroup.0)?], &SERVERS)?;
    judged(&found, 0, &[])?;
    let adopted = found.1["completeness"]["baseline_sockets"].as_u64();
    expect(&adopted.is_some_and(|count| count > 0), &true, "adopted")?;
    let accepted = found.1["sockets"]["accepted"].as_u64();
    expect(&accepted.is_some_and(|it| it > 100), &true, "accepted")?;
    program.ends_well()
}
