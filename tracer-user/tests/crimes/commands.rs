//! The command apart from its verdicts.

use std::io::{BufRead, BufReader, Read, Write};
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
        Trial::test(
            "a_command_that_cannot_run_ends_as_in_a_shell",
            a_command_that_cannot_run_ends_as_in_a_shell,
        ),
        privileged("exit_statuses_are_told_apart", exit_statuses_are_told_apart),
        privileged(
            "an_output_that_takes_no_text_hides_no_leak",
            an_output_that_takes_no_text_hides_no_leak,
        ),
        privileged(
            "the_report_goes_to_the_standard_output",
            the_report_goes_to_the_standard_output,
        ),
        privileged(
            "no_signal_leaves_the_command_behind",
            no_signal_leaves_the_command_behind,
        ),
        privileged(
            "a_grace_cut_short_is_not_clean",
            a_grace_cut_short_is_not_clean,
        ),
        privileged(
            "a_tracer_that_is_killed_leaves_nothing_frozen",
            a_tracer_that_is_killed_leaves_nothing_frozen,
        ),
        privileged(
            "a_window_holds_for_what_goes_on_in_the_background",
            a_window_holds_for_what_goes_on_in_the_background,
        ),
    ]
}

pub(crate) fn tracer() -> Command {
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

/// `script` gives the tracer a terminal and types its own standard input there.
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
    // Once typed and once read. Afterwards the shell has its terminal back.
    let read = |word| text.lines().filter(|line| *line == word).count() == 2;
    if !output.status.success() || !text.contains("status 0") || !read("first") || !read("second") {
        return Err(format!("{}: {text}", output.status).into());
    }
    Ok(())
}

fn a_detached_hook_is_named() -> Result<(), Failed> {
    let mut audit = tracer()
        .args(["run", "--", "sh", "-c", "echo started; exec sleep 30"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdout = BufReader::new(audit.stdout.take().ok_or("no pipe")?);
    // The command starts once everything is attached.
    stdout.read_line(&mut String::new())?;
    let link = release_link(audit.id())?;
    let detached = Command::new("bpftool")
        .args(["link", "detach", "id", &link])
        .status()?;
    let pid = rustix::process::Pid::from_child(&audit);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = audit.wait()?;
    let mut text = String::new();
    let mut stderr = audit.stderr.take().ok_or("no pipe")?;
    stderr.read_to_string(&mut text)?;
    stdout.read_to_string(&mut text)?;
    let wanted = format!("sock_release was detached during the audit (link {link})");
    if !detached.success() || status.code() != Some(4) || !text.contains(&wanted) {
        return Err(format!("{detached}, {status}, {text}").into());
    }
    Ok(())
}

/// Finds the link of the release hook (`BPF_CGROUP_INET_SOCK_RELEASE`, 34) among the tracer's
/// descriptors.
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
    let wrong: [&[&str]; 6] = [
        &["run"],
        &["run", "--grace", "soon", "--", "true"],
        &["run", "--deny", "leak", "--", "true"],
        &["run", "--json", "/no/such/folder/report.json", "--", "true"],
        // Without --for, it guards.
        &["attach", "--pid", "1", "--json", "-"],
        &["attach", "--pid", "1", "--stacks"],
    ];
    for arguments in wrong {
        let output = tracer().args(arguments).output()?;
        if output.status.code() != Some(2) || output.stderr.is_empty() {
            return Err(format!("{arguments:?} ended with {output:?}").into());
        }
    }
    Ok(())
}

/// Runs this binary's program of that name under audit.
fn audit_of(options: &[&str], fixture: &str) -> std::io::Result<Command> {
    let mut command = tracer();
    command.arg("run").args(options).arg("--");
    command.arg(std::env::current_exe()?);
    command.args([case::FIXTURE, fixture]);
    Ok(command)
}

pub(crate) fn status_of(command: &mut Command, wanted: i32) -> Result<String, Failed> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() != Some(wanted) {
        return Err(format!(
            "{command:?} ended with {}, not {wanted}: {text}",
            output.status
        )
        .into());
    }
    Ok(text)
}

fn a_command_that_cannot_run_ends_as_in_a_shell() -> Result<(), Failed> {
    let plain = tempfile::NamedTempFile::new()?;
    let plain = plain.path().to_str().ok_or("a path is not UTF-8")?;
    for (command, wanted) in [("no-such-command", 127), (plain, 126), ("/etc", 126)] {
        let text = status_of(tracer().args(["run", "--", command]), wanted)?;
        if !text.contains(command) {
            return Err(text.into());
        }
    }
    Ok(())
}

fn exit_statuses_are_told_apart() -> Result<(), Failed> {
    let exits_with_3 = ["--", "sh", "-c", "exit 3"];
    let leaks = |rule| {
        audit_of(
            &["--grace", "300ms", "--exit-code", rule],
            "close_wait_left_open",
        )
    };
    status_of(tracer().arg("run").args(exits_with_3), 3)?;
    status_of(
        tracer()
            .args(["run", "--exit-code", "verdict"])
            .args(exits_with_3),
        0,
    )?;
    status_of(&mut leaks("verdict")?, 3)?;
    status_of(&mut leaks("3=42")?, 42)?;
    Ok(())
}

fn an_output_that_takes_no_text_hides_no_leak() -> Result<(), Failed> {
    let full = || std::fs::File::options().write(true).open("/dev/full");
    let report = ["run", "--json", "/dev/full", "--", "true"];
    let text = status_of(tracer().args(report), 1)?;
    if !text.contains("cannot write the report") {
        return Err(text.into());
    }
    let options = ["--grace", "300ms", "--json", "/dev/full"];
    status_of(&mut audit_of(&options, "close_wait_left_open")?, 3)?;
    let leak = audit_of(&options[..2], "close_wait_left_open")?
        .stderr(full()?)
        .status()?;
    let clean = tracer()
        .args(["run", "--", "true"])
        .stderr(full()?)
        .status()?;
    if (leak.code(), clean.code()) != (Some(3), Some(0)) {
        return Err(format!("{leak}, {clean}").into());
    }
    Ok(())
}

fn the_report_goes_to_the_standard_output() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let output = tracer()
        .args(["run", "--json", "-", "--grace", "1", "--", "true"])
        .current_dir(folder.path())
        .output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    if report["verdict"] != "clean" || report["window"]["grace_ms"] != 1000 {
        return Err(report.to_string().into());
    }
    let files = std::fs::read_dir(folder.path())?.count();
    if files != 0 {
        return Err(format!("{files} files were made").into());
    }
    Ok(())
}

/// Starts an audit and returns it when the command has printed a line.
fn started(command: &mut Command) -> Result<std::process::Child, Failed> {
    let mut audit = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdout = BufReader::new(audit.stdout.take().ok_or("no pipe")?);
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    if line.is_empty() {
        return Err("the command printed nothing".into());
    }
    Ok(audit)
}

fn signal(audit: &std::process::Child, signal: rustix::process::Signal) -> Result<(), Failed> {
    let pid = rustix::process::Pid::from_child(audit);
    Ok(rustix::process::kill_process(pid, signal)?)
}

fn no_signal_leaves_the_command_behind() -> Result<(), Failed> {
    use rustix::process::Signal;
    for number in [Signal::QUIT, Signal::USR1, Signal::USR2, Signal::HUP] {
        let script = "echo $$; exec sleep 30";
        let mut command = tracer();
        command.args(["run", "--", "sh", "-c", script]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut audit = command.spawn()?;
        let mut line = String::new();
        BufReader::new(audit.stdout.take().ok_or("no pipe")?).read_line(&mut line)?;
        signal(&audit, number)?;
        let status = audit.wait()?;
        let lives = Path::new("/proc").join(line.trim()).exists();
        if lives || !status.success() {
            return Err(format!("{number:?}: {status}, the command lives: {lives}").into());
        }
    }
    Ok(())
}

fn a_grace_cut_short_is_not_clean() -> Result<(), Failed> {
    use rustix::process::Signal;
    let mut audit = started(&mut audit_of(
        &["--grace", "60s"],
        "close_wait_kept_for_long",
    )?)?;
    signal(&audit, Signal::INT)?;
    // The second one must not be taken for the first.
    std::thread::sleep(Duration::from_millis(500));
    signal(&audit, Signal::INT)?;
    let status = audit.wait()?;
    let mut text = String::new();
    audit
        .stderr
        .take()
        .ok_or("no pipe")?
        .read_to_string(&mut text)?;
    if status.code() != Some(4) || !text.contains("while 1 socket was to be released") {
        return Err(format!("{status}: {text}").into());
    }
    Ok(())
}

fn a_window_holds_for_what_goes_on_in_the_background() -> Result<(), Failed> {
    let own = std::env::current_exe()?;
    let script = format!(
        "(sleep 1; exec {} {} close_wait_left_open) >/dev/null 2>&1 &",
        own.display(),
        case::FIXTURE
    );
    let options = [
        "run", "--grace", "300ms", "--for", "20s", "--", "sh", "-c", &script,
    ];
    status_of(tracer().args(options), 3)?;
    Ok(())
}

/// Killed with -9 while the command is frozen for the last walk.
fn a_tracer_that_is_killed_leaves_nothing_frozen() -> Result<(), Failed> {
    const ATTEMPTS: usize = 10;
    for _ in 0..ATTEMPTS {
        let mut audit = tracer()
            .args(["run", "--grace", "10ms", "--for", "500ms", "--"])
            .args(["sh", "-c", "echo $$; exec sleep 60"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        let stdout = audit.stdout.take().ok_or("no pipe")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let command = line.trim().to_owned();
        let cgroup = tracer_user::cgroup::of_process(&command)?;
        let is_frozen = || {
            let events = std::fs::read_to_string(cgroup.join("cgroup.events"));
            events.is_ok_and(|events| events.contains("frozen 1"))
        };
        let mut was_frozen = false;
        while !was_frozen && audit.try_wait()?.is_none() {
            was_frozen = is_frozen();
        }
        audit.kill()?;
        audit.wait()?;
        let mut goes_on = false;
        for _ in 0..100 {
            goes_on |= !is_frozen();
            if goes_on {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The audit that was killed ends nothing and removes nothing.
        let _ = Command::new("kill").args(["-9", &command]).status()?;
        for _ in 0..100 {
            if std::fs::remove_dir(&cgroup).is_ok() || !cgroup.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if was_frozen {
            return case::expect(&goes_on, &true, "the command goes on").map_err(Into::into);
        }
    }
    Err("no audit was met while its command was frozen".into())
}
