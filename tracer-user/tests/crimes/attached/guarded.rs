//! Guards: they tell what becomes true and what is over, and survive their own end and the
//! target's.

use std::io::{BufRead, BufReader, Lines, Read};
use std::mem;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use libtest_mimic::{Failed, Trial};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Fixture, TestCgroup, run, text};
use crate::case::expect;

pub(super) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
    vec![
        privileged(
            "guarded_until_it_is_told_to_stop",
            guarded_until_it_is_told_to_stop,
        ),
        privileged("guarded_across_a_restart", guarded_across_a_restart),
        privileged(
            "guarded_across_a_hundred_kills",
            guarded_across_a_hundred_kills,
        ),
        privileged(
            "guarded_until_the_program_ends",
            guarded_until_the_program_ends,
        ),
        privileged(
            "guarded_and_pinned_across_a_restart",
            guarded_and_pinned_across_a_restart,
        ),
        privileged(
            "guarded_until_one_of_several_ends",
            guarded_until_one_of_several_ends,
        ),
        privileged("pinned_for_another_process", pinned_for_another_process),
        privileged(
            "pinned_and_the_exec_of_an_annotator_is_skipped",
            pinned_and_the_exec_of_an_annotator_is_skipped,
        ),
        privileged(
            "pinned_and_the_exit_of_an_annotator_is_skipped",
            pinned_and_the_exit_of_an_annotator_is_skipped,
        ),
        privileged(
            "pinned_and_the_exit_of_the_process_is_skipped",
            pinned_and_the_exit_of_the_process_is_skipped,
        ),
    ]
}

/// A guard whose lines are read.
pub(super) struct Guard {
    pub(super) guard: Child,
    /// `None` when nobody reads them any more.
    pub(super) lines: Option<Lines<BufReader<ChildStdout>>>,
    stderr: BufReader<ChildStderr>,
    /// What it printed besides its lines, as far as it was read.
    printed: String,
}

impl Guard {
    pub(super) fn start(target: &[&str], options: &[&str]) -> Result<Self, Failed> {
        let mut guard = Command::new(env!("CARGO_BIN_EXE_tracer"))
            .args(["attach", "--grace", "300ms"])
            .args(target)
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = guard.stdout.take().ok_or("no pipe")?;
        let stderr = guard.stderr.take().ok_or("no pipe")?;
        Ok(Self {
            guard,
            lines: Some(BufReader::new(stdout).lines()),
            stderr: BufReader::new(stderr),
            printed: String::new(),
        })
    }

    pub(super) fn next(&mut self) -> Result<Value, Failed> {
        let lines = self.lines.as_mut().ok_or("nobody reads")?;
        let line = lines.next().ok_or("no more lines")??;
        Ok(serde_json::from_str(&line)?)
    }

    /// Waits until it prints a line that contains `text`, or ends.
    pub(super) fn says(&mut self, text: &str) -> Result<(), Failed> {
        while !self.printed.contains(text) {
            if self.stderr.read_line(&mut self.printed)? == 0 {
                return Err(format!("never said {text:?}: {}", self.printed).into());
            }
        }
        Ok(())
    }

    /// Waits for its end, and returns the exit status and what it printed besides.
    pub(super) fn wait(mut self) -> Result<(Option<i32>, String), Failed> {
        self.stderr.read_to_string(&mut self.printed)?;
        let status = self.guard.wait()?;
        Ok((status.code(), mem::take(&mut self.printed)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

fn guarded_until_it_is_told_to_stop() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("guard")?;
    let mut guard = Guard::start(&["--cgroup", text(&cgroup.0)?], &["--exit-code", "verdict"])?;
    // How long it takes to start is not told: the program waits for a while only.
    guard.says("guarding")?;
    let program = cgroup.start("close_wait_for_a_while")?;
    let (found, resolved) = (guard.next()?, guard.next()?);
    expect(&found["schema"], &"watertight.finding/1".into(), "schema")?;
    for (line, state) in [(&found, "found"), (&resolved, "resolved")] {
        expect(&line["state"], &state.into(), "state")?;
        expect(&line["kind"], &"peer-closed".into(), "kind")?;
        expect(&line["cookie"], &found["cookie"], "cookie")?;
    }
    let holder = &found["holders"][0]["pid"];
    expect(holder, &program.pid().into(), "holder")?;
    kill_process(Pid::from_child(&guard.guard), Signal::TERM)?;
    let (code, printed) = guard.wait()?;
    expect(&code, &Some(3), &printed).map_err(Into::into)
}

fn guarded_until_the_program_ends() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("ends")?;
    let program = cgroup.start("pile_pool_reused")?;
    let guard = Guard::start(&["--pid", &program.pid().to_string()], &[])?;
    program.ends_well()?;
    let (code, printed) = guard.wait()?;
    expect(&code, &Some(0), &printed).map_err(Into::into)
}

fn guarded_across_a_restart() -> Result<(), Failed> {
    restarted("again", &[])
}

/// What is pinned is of the cgroup that was removed.
fn guarded_and_pinned_across_a_restart() -> Result<(), Failed> {
    let bpf = BpfFs::mount()?;
    let pin = bpf.0.path().join("guard");
    restarted("pinned", &["--pin", text(&pin)?])?;
    detach(&pin)
}

/// The cgroup of a service is removed and made anew.
fn restarted(name: &str, options: &[&str]) -> Result<(), Failed> {
    let cgroup = TestCgroup::create(name)?;
    let path = cgroup.0.clone();
    let first = cgroup.start("close_wait_kept_for_long")?;
    let mut guard = Guard::start(&["--cgroup", text(&path)?], options)?;
    let found = guard.next()?;
    expect(&found["state"], &"found".into(), "state")?;
    let before = found["holders"][0]["pid"].clone();
    drop((first, cgroup));
    let cgroup = TestCgroup::at(path)?;
    let second = cgroup.start("close_wait_kept_for_long")?;
    let wanted = Value::from(second.pid());
    expect(&(before != wanted), &true, "another process")?;
    loop {
        let line = guard.next()?;
        if line["state"] == "found" && line["holders"][0]["pid"] == wanted {
            break;
        }
    }
    kill_process(Pid::from_child(&guard.guard), Signal::TERM)?;
    let (code, printed) = guard.wait()?;
    expect(&code, &Some(0), &printed).map_err(Into::into)
}

/// A BPF file system of the test's own.
struct BpfFs(tempfile::TempDir);

impl BpfFs {
    fn mount() -> Result<Self, Failed> {
        let folder = tempfile::tempdir()?;
        let mounted = Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(folder.path())
            .status()?;
        expect(&mounted.success(), &true, "a BPF file system is mounted")?;
        Ok(Self(folder))
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// What happens while no tracer lives is known to the one that comes back.
fn guarded_across_a_hundred_kills() -> Result<(), Failed> {
    let (cgroup, bpf) = (TestCgroup::create("kills")?, BpfFs::mount()?);
    let pin = bpf.0.path().join("guard");
    let target = ["--cgroup", text(&cgroup.0)?, "--pin", text(&pin)?];
    let start = || -> Result<Guard, Failed> {
        let mut guard = Guard::start(&target, &[])?;
        guard.says("guarding")?;
        Ok(guard)
    };
    let kill = |mut guard: Guard| -> Result<(), Failed> {
        guard.guard.kill()?;
        guard.guard.wait()?;
        Ok(())
    };
    kill(start()?)?;
    let program = cgroup.start("close_wait_kept_for_long")?;
    for _ in 0..100 {
        kill(start()?)?;
    }
    let mut guard = start()?;
    let found = guard.next()?;
    expect(&found["kind"], &"peer-closed".into(), "kind")?;
    expect(&found["opened_by"]["pid"], &program.pid().into(), "opener")?;
    expect(&found["opened_ns"].is_u64(), &true, "its birth was seen")?;
    kill(guard)?;
    detach(&pin)
}

fn detach(pin: &Path) -> Result<(), Failed> {
    let output = run(Command::new(env!("CARGO_BIN_EXE_tracer"))
        .args(["detach", "--pin"])
        .arg(pin))?;
    expect(&output.status.code(), &Some(0), "detach")?;
    expect(&pin.exists(), &false, "pins are left").map_err(Into::into)
}

/// Its number may be another process's soon: the kernel side tells that it has exited.
fn guarded_until_one_of_several_ends() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("one-ends")?;
    let _other = cgroup.start("pile_pool_for_long")?;
    let program = cgroup.start("pile_pool_reused")?;
    let guard = Guard::start(&["--pid", &program.pid().to_string()], &[])?;
    program.ends_well()?;
    let (code, printed) = guard.wait()?;
    expect(&code, &Some(0), &printed).map_err(Into::into)
}

/// Pins are of one process: another one of its cgroup is not taken for it.
fn pinned_for_another_process() -> Result<(), Failed> {
    let (cgroup, bpf) = (TestCgroup::create("other")?, BpfFs::mount()?);
    let pin = bpf.0.path().join("guard");
    let (first, second) = (
        cgroup.start("pile_pool_for_long")?,
        cgroup.start("pile_pool_for_long")?,
    );
    let start = |of: &Fixture| {
        let pid = of.pid().to_string();
        Guard::start(&["--pid", &pid, "--pin", text(&pin)?], &[])
    };
    let mut guard = start(&first)?;
    guard.says("guarding")?;
    drop(guard);
    let (code, printed) = start(&second)?.wait()?;
    expect(&code, &Some(5), &printed)?;
    let is_told = printed.contains("an audit of something else");
    expect(&is_told, &true, &printed)?;
    detach(&pin)
}

/// Starts a guard whose programs do not see execs and exits, as if the kernel skipped them.
fn start_without_execs_and_exits(target: &[&str], pin: &Path) -> Result<Guard, Failed> {
    let target = [target, &["--pin", text(pin)?, "--exit-code", "verdict"]].concat();
    let mut guard = Guard::start(&target, &[])?;
    guard.says("guarding")?;
    drop(guard);
    for program in ["process_exec", "process_exit"] {
        std::fs::remove_file(pin.join(format!("watertight_link_{program}")))?;
    }
    let mut guard = Guard::start(&target, &[])?;
    guard.says("guarding")?;
    Ok(guard)
}

/// Runs a program whose sockets no rule judges, under a guard that sees no execs and exits.
fn judged_without_execs_and_exits(fixture: &str) -> Result<(), Failed> {
    let (cgroup, bpf) = (TestCgroup::create(fixture)?, BpfFs::mount()?);
    let pin = bpf.0.path().join("guard");
    let guard = start_without_execs_and_exits(&["--cgroup", text(&cgroup.0)?], &pin)?;
    cgroup.start(fixture)?.ends_well()?;
    kill_process(Pid::from_child(&guard.guard), Signal::TERM)?;
    let (code, printed) = guard.wait()?;
    expect(&code, &Some(0), &printed)?;
    detach(&pin)
}

/// What the other program opens is not held against it.
fn pinned_and_the_exec_of_an_annotator_is_skipped() -> Result<(), Failed> {
    judged_without_execs_and_exits("process_becomes_another_program")
}

/// Another process has the number at once.
fn pinned_and_the_exit_of_an_annotator_is_skipped() -> Result<(), Failed> {
    judged_without_execs_and_exits("process_number_used_again")
}

/// The guard ends with the process all the same: its end is seen where nothing is skipped.
fn pinned_and_the_exit_of_the_process_is_skipped() -> Result<(), Failed> {
    let (cgroup, bpf) = (TestCgroup::create("unseen")?, BpfFs::mount()?);
    let pin = bpf.0.path().join("guard");
    // Without it the guard ends because the cgroup is empty.
    let _other = cgroup.start("pile_pool_for_long")?;
    let program = cgroup.start("close_wait_kept_for_long")?;
    let target = ["--pid", &program.pid().to_string()];
    let guard = start_without_execs_and_exits(&target, &pin)?;
    drop(program);
    let (code, printed) = guard.wait()?;
    expect(&code, &Some(0), &printed)?;
    detach(&pin)
}
