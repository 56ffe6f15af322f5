//! What is reported: the summary, the JSON report and the metrics.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::attached::TestCgroup;
use crate::case;

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
    vec![
        privileged(
            "counts_are_served_while_it_runs",
            counts_are_served_while_it_runs,
        ),
        privileged("findings_are_served_by_cause", findings_are_served_by_cause),
        privileged(
            "a_guard_counts_without_records",
            a_guard_counts_without_records,
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

/// A command under audit whose metrics are served.
struct Served {
    audit: Child,
    address: String,
}

impl Served {
    fn start(command: &mut Command) -> Result<Self, Failed> {
        let mut audit = command.stderr(Stdio::piped()).spawn()?;
        let stderr = audit.stderr.take().ok_or("no pipe")?;
        let mut lines = BufReader::new(stderr).lines();
        let line = lines.next().ok_or("it printed nothing")??;
        let address = line
            .strip_prefix("metrics    http://")
            .and_then(|rest| rest.strip_suffix("/metrics"))
            .ok_or_else(|| format!("no address in {line:?}"))?
            .to_owned();
        Ok(Self { audit, address })
    }

    fn scrape(&self) -> Result<String, Failed> {
        self.scrape_as(&self.address)
    }

    /// Scrapes and names `host`.
    fn scrape_as(&self, host: &str) -> Result<String, Failed> {
        let mut socket = TcpStream::connect(&self.address)?;
        let head = "GET /metrics HTTP/1.1\r\nConnection: close\r\nHost:";
        write!(socket, "{head} {host}\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn end(mut self) -> Result<ExitStatus, Failed> {
        let pid = rustix::process::Pid::from_child(&self.audit);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        Ok(self.audit.wait()?)
    }
}

fn counts_are_served_while_it_runs() -> Result<(), Failed> {
    let served =
        Served::start(tracer().args(["run", "--listen", "127.0.0.1:0", "--", "sleep", "30"]))?;
    let answer = served.scrape()?;
    let foreign = served.scrape_as("evil.example")?;
    let status = served.end()?;
    for counter in [
        "watertight_audit_sockets 0",
        "watertight_audit_sockets_created_total 0",
        "watertight_audit_records_lost_total 0",
    ] {
        if !answer.contains(counter) {
            return Err(format!("no {counter:?} in {answer}").into());
        }
    }
    if !foreign.starts_with("HTTP/1.1 421 ") || foreign.contains("watertight_audit") {
        return Err(format!("a foreign host name is answered with {foreign}").into());
    }
    if !status.success() {
        return Err(format!("SIGTERM ended it with {status}").into());
    }
    Ok(())
}

fn findings_are_served_by_cause() -> Result<(), Failed> {
    let own = std::env::current_exe()?;
    let served = Served::start(
        tracer()
            .args(["run", "--grace", "300ms", "--listen", "127.0.0.1:0", "--"])
            .arg(&own)
            .args([case::FIXTURE, "judged_while_running"]),
    )?;
    let family = "watertight_audit_finding_sockets{";
    let mut answer = String::new();
    for _ in 0..100 {
        answer = served.scrape()?;
        if answer.contains(family) {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    served.end()?;
    let line = answer.lines().find(|line| line.starts_with(family));
    let line = line.ok_or_else(|| format!("no {family} in {answer}"))?;
    let executable = format!("executable=\"{}\"", own.display());
    let wanted = [
        &executable,
        "kind=\"outlived-request\"",
        "level=\"deny\"",
        "program=\"",
        "target=\"127.0.0.1:",
        "\"} 1",
    ];
    match wanted.into_iter().find(|it| !line.contains(it)) {
        Some(lacking) => Err(format!("no {lacking} in {line}").into()),
        None => Ok(()),
    }
}

/// Returns the sum of a family's samples.
fn sample(scraped: &str, family: &str) -> u64 {
    let samples = scraped.lines().filter_map(|line| {
        let rest = line.strip_prefix(family)?;
        let value = rest.strip_prefix(' ').or_else(|| {
            let (_labels, value) = rest.strip_prefix('{')?.rsplit_once("} ")?;
            Some(value)
        })?;
        value.parse::<u64>().ok()
    });
    samples.sum()
}

/// Thousands of connections that break no rule: the kernel counts them.
fn a_guard_counts_without_records() -> Result<(), Failed> {
    let cgroup = TestCgroup::create("counts")?;
    let served = Served::start(
        tracer()
            .args(["attach", "--grace", "300ms", "--listen", "127.0.0.1:0"])
            .arg("--cgroup")
            .arg(cgroup.path())
            .stdout(Stdio::null()),
    )?;
    let program = cgroup.start("steady_load")?;
    sleep(Duration::from_secs(2));
    let during = served.scrape()?;
    program.ends_well()?;
    let total = |scraped: &str, of: &str| sample(scraped, &format!("watertight_audit_{of}_total"));
    let mut answer = served.scrape()?;
    // The last walk may have come before the last release.
    for _ in 0..100 {
        let released = total(&answer, "sockets_released");
        if total(&answer, "target_released") + total(&answer, "listener_released") + 1 == released {
            break;
        }
        sleep(Duration::from_millis(100));
        answer = served.scrape()?;
    }
    served.end()?;
    let released = total(&answer, "sockets_released");
    let check = || {
        case::expect(&(released > 1000), &true, "released")?;
        let connections = (released - 1) / 2;
        for family in [
            "target_opened",
            "target_released",
            "listener_accepted",
            "listener_released",
        ] {
            case::expect(&total(&answer, family), &connections, family)?;
        }
        for family in ["target_opened", "sockets_released"] {
            let grows = total(&during, family) < total(&answer, family);
            case::expect(&grows, &true, family)?;
        }
        let lifetimes = sample(&answer, "watertight_audit_socket_lifetime_seconds_count");
        case::expect(&lifetimes, &released, "lifetimes")?;
        case::expect(&(total(&answer, "records") < 100), &true, "records")?;
        // None is left of the self-test's.
        let listeners = answer.matches("watertight_audit_listener_accepted_total{");
        case::expect(&listeners.count(), &1, "listeners")
    };
    check().map_err(|error| format!("{error}\n{answer}").into())
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
