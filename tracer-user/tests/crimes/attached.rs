//! Programs that run already: what `tracer attach` says of them, and that it leaves them alone.

mod environment;
mod guarded;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::case::{FIXTURE, denied, expect, findings};

/// After this time a program is in the middle of its connections.
const STARTED: Duration = Duration::from_millis(1200);
const SHORT: [&str; 6] = ["--grace", "300ms", "--pile-up-after", "1s", "--for", "4s"];

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
    let trials = vec![
        privileged("attached_to_a_pile", attached_to_a_pile),
        privileged("attached_to_a_pool", attached_to_a_pool),
        privileged(
            "attached_to_a_half_closed_visitor",
            attached_to_a_half_closed_visitor,
        ),
        privileged("attached_to_close_wait", attached_to_close_wait),
        privileged(
            "attached_to_one_process_of_several",
            attached_to_one_process_of_several,
        ),
        privileged(
            "attached_to_sockets_made_elsewhere",
            attached_to_sockets_made_elsewhere,
        ),
        privileged(
            "attached_while_connections_come_and_go",
            attached_while_connections_come_and_go,
        ),
        privileged("attached_to_dead_visitors", attached_to_dead_visitors),
        privileged("attached_to_nothing", attached_to_nothing),
    ];
    let others = [environment::trials(skipped), guarded::trials(skipped)];
    trials
        .into_iter()
        .chain(others.into_iter().flatten())
        .collect()
}

/// A cgroup of the test, removed with what runs in it.
pub(crate) struct TestCgroup(PathBuf);

impl TestCgroup {
    pub(crate) fn create(name: &str) -> Result<Self, Failed> {
        Self::at(
            tracer_user::cgroup::mount()?.join(format!("wt-test-{name}-{}", std::process::id())),
        )
    }

    fn at(path: PathBuf) -> Result<Self, Failed> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn take(&self, pid: u32) -> Result<(), Failed> {
        Ok(fs::write(self.0.join("cgroup.procs"), pid.to_string())?)
    }

    /// Starts a fixture of this binary inside.
    pub(crate) fn start(&self, fixture: &str) -> Result<Fixture, Failed> {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""])
            .arg(&self.0)
            .arg(std::env::current_exe()?)
            .args([FIXTURE, fixture]);
        Fixture::start(command)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        // Those that are killed leave the cgroup a moment later.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A program that runs; killed when it is dropped.
pub(crate) struct Fixture(Child);

impl Fixture {
    fn start(mut command: Command) -> Result<Self, Failed> {
        let child = command.stdout(Stdio::null()).stdin(Stdio::null()).spawn()?;
        thread::sleep(STARTED);
        Ok(Self(child))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end, which the audit must not have changed.
    pub(crate) fn ends_well(mut self) -> Result<(), Failed> {
        let status = self.0.wait()?;
        expect(&status.code(), &Some(0), "the program's own end").map_err(Into::into)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Attaches and returns the exit status and the report.
fn attach(target: &[&str], options: &[&str]) -> Result<(Option<i32>, Value), Failed> {
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("report.json");
    let output = run(Command::new(env!("CARGO_BIN_EXE_tracer"))
        .arg("attach")
        .args(target)
        .args(options)
        .arg("--json")
        .arg(&json))?;
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = fs::read_to_string(&json).map_err(|error| format!("{error}\n{printed}"))?;
    Ok((output.status.code(), serde_json::from_str(&text)?))
}

fn run(command: &mut Command) -> Result<Output, Failed> {
    Ok(command.output()?)
}

fn text(path: &Path) -> Result<&str, Failed> {
    path.to_str().ok_or_else(|| "no UTF-8".into())
}

fn judged(
    found: &(Option<i32>, Value),
    status: i32,
    kinds: &[(&str, usize)],
) -> Result<(), Failed> {
    let (code, report) = found;
    let check = || {
        expect(code, &Some(status), "exit status")?;
        let counts = denied(report);
        for (kind, least) in kinds {
            let enough = counts.get(kind).is_some_and(|count| count >= least);
            expect(&enough, &true, kind)?;
        }
        expect(&counts.len(), &kinds.len(), "denied kinds")?;
        expect(&report["witness"]["agrees"], &true.into(), "witness agrees")
    };
    check().map_err(|error| format!("{error}\n{report:#}").into())
}

fn attached_to_a_pile() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("pile")?;
    let program = cgroup.start("pile_for_long")?;
    let found = attach(&["--pid", &program.pid().to_string()], &SHORT)?;
    judged(&found, 3, &[("pile-up", 8)])?;
    let (_, report) = &found;
    expect(
        &report["target"]["cgroup"],
        &text(&cgroup.0)?.into(),
        "the cgroup",
    )?;
    let groups = report["groups"].as_array().map_or(0, Vec::len);
    expect(&groups, &1, "groups")?;
    // The program is its own server.
    let accepted = report["listeners"][0]["open"].as_u64();
    expect(&accepted.is_some_and(|open| open > 8), &true, "accepted")?;
    let adopted = report["completeness"]["baseline_sockets"].as_u64();
    expect(&adopted.is_some_and(|count| count > 0), &true, "adopted")?;
    let left = fs::read_dir(&cgroup.0)?.flatten();
    let left = left.filter(|it| it.file_type().is_ok_and(|kind| kind.is_dir()));
    expect(&left.count(), &0, "cgroups that are left").map_err(Into::into)
}

/// It was adopted in CLOSE_WAIT, and nobody sees when it leaves that state.
fn attached_to_a_half_closed_visitor() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("half")?;
    let _program = cgroup.start("half_closed_and_served_for_long")?;
    let options = ["--grace", "300ms", "--for", "3500ms"];
    let found = attach(&["--cgroup", text(&cgroup.0)?], &options)?;
    judged(&found, 0, &[])
}

fn attached_to_a_pool() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("pool")?;
    let program = cgroup.start("pile_pool_reused")?;
    let found = attach(&["--cgroup", text(&cgroup.0)?], &SHORT)?;
    judged(&found, 0, &[])?;
    program.ends_well()
}

fn attached_to_close_wait() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("wait")?;
    let _program = cgroup.start("close_wait_kept_for_long")?;
    let options = ["--grace", "300ms", "--for", "2s"];
    let found = attach(&["--cgroup", text(&cgroup.0)?], &options)?;
    judged(&found, 3, &[("peer-closed", 1)])?;
    let finding = &findings(&found.1)[0];
    expect(&finding["opened_ns"], &Value::Null, "opened")?;
    expect(&finding["adopted_ns"].is_u64(), &true, "adopted")?;
    expect(&finding["tcp_state"], &"CLOSE_WAIT".into(), "state").map_err(Into::into)
}

/// Nothing but their own port tells that a listener accepted them, and TCP has given it back.
fn attached_to_dead_visitors() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("dead")?;
    let program = cgroup.start("visitors_reset_and_kept_for_long")?;
    let options = ["--grace", "300ms", "--for", "2s"];
    let found = attach(&["--cgroup", text(&cgroup.0)?], &options)?;
    judged(&found, 3, &[("dead-socket", 3)])?;
    let (_, report) = &found;
    let rows = report["listeners"].as_array().map_or(0, Vec::len);
    expect(&rows, &1, "listeners")?;
    let row = &report["listeners"][0];
    expect(&row["open"], &4.into(), "accepted and open")?;
    let output = run(Command::new(env!("CARGO_BIN_EXE_tracer")).args(["top", "--once", "--json"]))?;
    let shown: Value = serde_json::from_slice(&output.stdout)?;
    let rows = shown["rows"].as_array().ok_or("no rows")?;
    let mut accepted = rows
        .iter()
        .filter(|row| row["pid"] == program.pid() && row["direction"] == "accepted");
    let row = accepted.next().ok_or("top shows none")?;
    expect(&row["dead"], &3.into(), "dead in top")?;
    expect(&row["open"], &4.into(), "open in top").map_err(Into::into)
}

/// Another program of the same cgroup leaks.
fn attached_to_one_process_of_several() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("several")?;
    let right = cgroup.start("pile_pool_for_long")?;
    let wrong = cgroup.start("pile_for_long")?;
    let found = attach(&["--pid", &right.pid().to_string()], &SHORT)?;
    judged(&found, 0, &[])?;
    let found = attach(&["--pid", &wrong.pid().to_string()], &SHORT)?;
    judged(&found, 3, &[("pile-up", 8)])
}

/// A program that is moved keeps sockets that belong to another cgroup for ever.
fn attached_to_sockets_made_elsewhere() -> Result<(), Failed> {
    let (first, second) = (TestCgroup::create("first")?, TestCgroup::create("second")?);
    let program = first.start("close_wait_kept_for_long")?;
    second.take(program.pid())?;
    let options = ["--grace", "300ms", "--for", "2s"];
    let found = attach(&["--cgroup", text(&second.0)?], &options)?;
    judged(&found, 3, &[("peer-closed", 1)])?;
    let witnessed = found.1["completeness"]["witnessed_only"].as_u64();
    expect(
        &witnessed.is_some_and(|count| count >= 1),
        &true,
        "witnessed only",
    )
    .map_err(Into::into)
}

fn attached_while_connections_come_and_go() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("load")?;
    let _program = cgroup.start("steady_load")?;
    let options = ["--grace", "300ms", "--for", "2s"];
    let found = attach(&["--cgroup", text(&cgroup.0)?], &options)?;
    judged(&found, 0, &[])?;
    let created = found.1["sockets"]["created"].as_u64();
    expect(&created.is_some_and(|count| count > 50), &true, "created").map_err(Into::into)
}

fn attached_to_nothing() -> Result<(), Failed> {
    let cases: [(&[&str], &str); 5] = [
        (&["--pid", "4194304"], "no process 4194304"),
        (&["--cgroup", "/no/such/cgroup"], "is no cgroup v2"),
        (&["--container", "no-such-container"], "no container called"),
        (&["--unit", "no-such-unit"], "no unit called"),
        (&[], "required"),
    ];
    for (target, words) in cases {
        let output = run(Command::new(env!("CARGO_BIN_EXE_tracer"))
            .arg("attach")
            .args(target)
            .args(["--for", "1s"]))?;
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        expect(&output.status.code(), &Some(2), &printed)?;
        expect(&printed.contains(words), &true, &printed)?;
    }
    Ok(())
}
