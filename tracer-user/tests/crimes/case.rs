//! A program under audit, and what the report must say.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::Failed;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The argument that makes this binary the program under audit.
pub(crate) const FIXTURE: &str = "__fixture";

/// After this time the program under audit is in the middle of its connections.
const BEFORE_THE_STOP: Duration = Duration::from_millis(700);
const STOPPED: Duration = Duration::from_secs(2);

const CLEAN: i32 = 0;
pub(crate) const LEAK: i32 = 3;
pub(crate) const INCONCLUSIVE: i32 = 4;

/// A program and the expected report.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) status: i32,
    /// Findings that deny, by kind.
    pub(crate) denied: &'static [(&'static str, usize)],
    /// The expected holders; the program prints them to its standard output.
    pub(crate) holders: Holders,
    pub(crate) options: &'static [&'static str],
    /// Programs that must be installed.
    pub(crate) needs: &'static [&'static str],
    /// The command that starts the tracer, if any.
    pub(crate) started_by: &'static [&'static str],
    /// The command inherits a listener from outside the audit as its standard input.
    pub(crate) inherits: bool,
    /// Whether counters, ledger and witness must agree.
    pub(crate) agrees: bool,
    /// The tracer is stopped (SIGSTOP) for a while in the middle.
    pub(crate) reader_stops: bool,
    pub(crate) more: fn(&Value) -> Result<(), String>,
}

/// The expected holders.
pub(crate) enum Holders {
    /// Exactly those that the program printed: "holder PID FD".
    AsPrinted,
    /// None: the socket is released.
    Nobody,
    /// Those that the program printed, if the tracer was not stopped at that time.
    AsPrintedIfSeen,
    /// Every socket found has one, and `denied` are the fewest that must be found: how many there
    /// are depends on when the witness looked.
    OneEach,
}

/// One socket outlived its request.
pub(crate) const OUTLIVED: &[(&str, usize)] = &[("outlived-request", 1)];

pub(crate) const BASE: Case = Case {
    name: "",
    status: CLEAN,
    denied: &[],
    holders: Holders::Nobody,
    options: &["--grace", "300ms"],
    needs: &[],
    started_by: &[],
    inherits: false,
    agrees: true,
    reader_stops: false,
    more: |_| Ok(()),
};

pub(crate) const fn clean(name: &'static str) -> Case {
    Case { name, ..BASE }
}

pub(crate) const fn leaks(name: &'static str, denied: &'static [(&'static str, usize)]) -> Case {
    Case {
        name,
        status: LEAK,
        denied,
        holders: Holders::AsPrinted,
        ..BASE
    }
}

/// Whether a case that cannot run must fail instead of being skipped, as in CI.
fn is_strict() -> bool {
    std::env::var_os("WATERTIGHT_TEST_STRICT").is_some()
}

/// Whether privileges are missing and that is allowed.
pub(crate) fn must_skip() -> bool {
    !rustix::process::geteuid().is_root() && !is_strict()
}

impl Case {
    /// Whether the case is skipped: without privileges, or without a program that it needs.
    pub(crate) fn is_skipped(&self) -> bool {
        must_skip() || self.needs.iter().any(|program| lacks(program))
    }

    pub(crate) fn check(&self) -> Result<(), Failed> {
        let directory = tempfile::tempdir()?;
        let json = directory.path().join("report.json");
        let output = self.run(&json)?;
        let printed = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let text = std::fs::read_to_string(&json).map_err(|error| format!("{error}\n{printed}"))?;
        let report: Value = serde_json::from_str(&text)?;
        self.compare(&output, &report)
            .map_err(|error| format!("{error}\n{printed}\n{text}").into())
    }

    fn run(&self, json: &Path) -> std::io::Result<Output> {
        // The fixture is the first word. Cases that differ only in their conditions share one.
        let fixture = self.name.split(' ').next().unwrap_or_default();
        let (starter, arguments) = self
            .started_by
            .split_first()
            .unwrap_or((&env!("CARGO_BIN_EXE_tracer"), &[]));
        let mut command = Command::new(starter);
        if !self.started_by.is_empty() {
            command.args(arguments).arg(env!("CARGO_BIN_EXE_tracer"));
        }
        let tracer = command
            .arg("run")
            .args(self.options)
            .arg("--json")
            .arg(json)
            .arg("--")
            .arg(std::env::current_exe()?)
            .args([FIXTURE, fixture])
            .stdin(self.standard_input()?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if self.reader_stops {
            let pid = Pid::from_child(&tracer);
            thread::sleep(BEFORE_THE_STOP);
            kill_process(pid, Signal::STOP)?;
            thread::sleep(STOPPED);
            kill_process(pid, Signal::CONT)?;
        }
        tracer.wait_with_output()
    }

    fn standard_input(&self) -> std::io::Result<Stdio> {
        if !self.inherits {
            return Ok(Stdio::null());
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok(OwnedFd::from(listener).into())
    }

    fn compare(&self, output: &Output, report: &Value) -> Result<(), String> {
        let verdict = match self.status {
            LEAK => "leak",
            INCONCLUSIVE => "inconclusive",
            _ => "clean",
        };
        expect(&report["verdict"], &verdict.into(), "verdict")?;
        expect(&output.status.code(), &Some(self.status), "exit status")?;
        expect(&report["schema"], &"watertight.audit/1".into(), "schema")?;
        expect(
            &report["witness"]["agrees"],
            &self.agrees.into(),
            "witness agrees",
        )?;
        let wanted: BTreeMap<&str, usize> = self.denied.iter().copied().collect();
        match self.holders {
            Holders::OneEach => {
                let found = denied(report);
                let are_enough = wanted
                    .iter()
                    .all(|(kind, count)| found.get(kind) >= Some(count));
                expect(
                    &(found.len(), are_enough),
                    &(wanted.len(), true),
                    "denied findings",
                )?;
            }
            Holders::AsPrinted | Holders::AsPrintedIfSeen | Holders::Nobody => {
                expect(&denied(report), &wanted, "denied findings")?;
            }
        }
        (self.more)(report)?;
        let printed = printed_holders(&String::from_utf8_lossy(&output.stdout));
        match self.holders {
            Holders::AsPrinted => expect(&holders(report), &printed, "holders"),
            Holders::AsPrintedIfSeen if holders(report).is_empty() => Ok(()),
            Holders::AsPrintedIfSeen => expect(&holders(report), &printed, "holders"),
            Holders::Nobody => expect(&holders(report), &Vec::new(), "holders"),
            Holders::OneEach => {
                let found: usize = denied(report).values().sum();
                expect(&holders(report).len(), &found, "holders")
            }
        }
    }
}

/// Whether a program is missing and that is allowed.
pub(crate) fn lacks(program: &str) -> bool {
    let missing = find_program(program).is_none();
    if missing {
        eprintln!("{program} is not installed");
    }
    missing && !is_strict()
}

/// Searches PATH, and where Debian has the programs of PostgreSQL.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    versions
        .flatten()
        .map(|version| version.path().join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

pub(crate) fn denied(report: &Value) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for found in findings(report) {
        if found["level"] == "deny" {
            *counts
                .entry(found["kind"].as_str().unwrap_or("?"))
                .or_default() += 1;
        }
    }
    counts
}

pub(crate) fn findings(report: &Value) -> &[Value] {
    report["findings"].as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn only(report: &Value) -> Result<&Value, String> {
    match findings(report) {
        [found] => Ok(found),
        found => Err(format!("{} findings where one was expected", found.len())),
    }
}

pub(crate) fn holders(report: &Value) -> Vec<(u64, u64)> {
    let mut holders: Vec<(u64, u64)> = findings(report)
        .iter()
        .filter(|found| found["level"] == "deny")
        .flat_map(|found| found["holders"].as_array().into_iter().flatten())
        .map(|holder| {
            (
                holder["pid"].as_u64().unwrap_or(0),
                holder["fd"].as_u64().unwrap_or(0),
            )
        })
        .collect();
    holders.sort_unstable();
    holders
}

/// Reads the lines "holder PID FD".
pub(crate) fn printed_holders(printed: &str) -> Vec<(u64, u64)> {
    let mut printed: Vec<(u64, u64)> = printed
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("holder ")?.split(' ');
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        })
        .collect();
    printed.sort_unstable();
    printed
}

pub(crate) fn expect<T: PartialEq + std::fmt::Debug>(
    found: &T,
    wanted: &T,
    what: &str,
) -> Result<(), String> {
    if found == wanted {
        Ok(())
    } else {
        Err(format!("{what}: {found:?} where {wanted:?} was expected"))
    }
}
