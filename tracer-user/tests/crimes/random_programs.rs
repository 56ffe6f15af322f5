//! Random programs: many connections at once, each with random steps, and a model of the rules that
//! predicts the finding.
//!
//! `WATERTIGHT_TEST_SEED` repeats a run. A test that fails has printed its seed.

mod model;
mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
pub(crate) use program::run;
use program::{COUNT, PROGRAMS};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::case::{self, FIXTURE, expect};

/// The grace that the tracer is given.
const GRACE: &str = "1s";
/// How long the tracer runs between two stops, and how long each stop lasts.
const BETWEEN_STOPS: Duration = Duration::from_millis(1500);
const STOP: Duration = Duration::from_secs(4);
/// How many ends of connections must have run on time: half of them.
const MIN_ON_TIME: u64 = COUNT;

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let conditions = [
        (Condition::Ordinary, ""),
        (Condition::TinyRing, "_though_records_are_lost"),
        (Condition::StoppedReader, "_though_the_reader_stops"),
        (Condition::FewPlaces, "_though_places_are_few"),
    ];
    let mut trials = Vec::new();
    for program in PROGRAMS {
        for (condition, suffix) in conditions {
            let name = format!("{program}_are_judged_by_the_rules{suffix}");
            let trial = Trial::test(name, move || {
                random_programs_are_judged_by_the_rules(program, condition)
            });
            trials.push(trial.with_ignored_flag(skipped));
        }
    }
    trials
}

/// The condition under which the tracer works.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Ordinary,
    /// Most records are lost.
    TinyRing,
    /// The tracer is stopped (SIGSTOP) again and again, for longer than a wait.
    StoppedReader,
    /// Most sockets find their place taken, and every place is used many times.
    FewPlaces,
}

impl Condition {
    /// Returns the tracer's options that bring it about.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Ordinary | Self::StoppedReader => &[],
            Self::TinyRing => &["--ring", "4"],
            Self::FewPlaces => &["--places", "64"],
        }
    }
}

/// Stops the tracer again and again until it ends.
fn stop_often(tracer: &mut Child) -> std::io::Result<()> {
    let pid = Pid::from_child(tracer);
    thread::sleep(BETWEEN_STOPS);
    while tracer.try_wait()?.is_none() {
        kill_process(pid, Signal::STOP)?;
        thread::sleep(STOP);
        kill_process(pid, Signal::CONT)?;
        thread::sleep(BETWEEN_STOPS);
    }
    Ok(())
}

/// A finding: its kind and its holders.
type Found = (String, BTreeSet<String>);

fn random_programs_are_judged_by_the_rules(
    program: &str,
    condition: Condition,
) -> Result<(), Failed> {
    let seed = std::env::var("WATERTIGHT_TEST_SEED")
        .unwrap_or_else(|_| RandomState::new().hash_one(program).to_string());
    eprintln!("{program}: WATERTIGHT_TEST_SEED={seed}");
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("report.json");
    // Files take any amount of output without a reader.
    let (printed, stderr) = (
        directory.path().join("stdout"),
        directory.path().join("stderr"),
    );
    let mut tracer = Command::new(env!("CARGO_BIN_EXE_tracer"))
        .args(["run", "--grace", GRACE])
        .args(condition.options())
        .arg("--json")
        .arg(&json)
        .arg("--")
        .arg(std::env::current_exe()?)
        .args([FIXTURE, program])
        .env("WATERTIGHT_TEST_SEED", &seed)
        .stdin(Stdio::null())
        .stdout(File::create(&printed)?)
        .stderr(File::create(&stderr)?)
        .spawn()?;
    if condition == Condition::StoppedReader {
        stop_often(&mut tracer)?;
    }
    tracer.wait()?;
    let printed = std::fs::read_to_string(printed)?;
    let stderr = std::fs::read_to_string(stderr)?;
    let failed = |what: String| format!("seed {seed}: {what}\n{stderr}");
    let report = std::fs::read(json).map_err(|error| failed(error.to_string()))?;
    let report: Value = serde_json::from_slice(&report)?;
    expect(&report["verdict"], &"leak".into(), "verdict").map_err(failed)?;
    expect(&report["witness"]["agrees"], &true.into(), "agrees").map_err(failed)?;
    let lost = report["completeness"]["lost_events"] != 0;
    let loses = condition == Condition::TinyRing;
    expect(&lost, &loses, "records were lost").map_err(failed)?;
    if condition == Condition::FewPlaces {
        let without_place = report["completeness"]["without_place"].as_u64();
        expect(&(without_place > Some(0)), &true, "some had no place").map_err(failed)?;
    }
    let mut findings = denied(&report);
    let (mut on_time, mut wrong) = (0, Vec::new());
    for line in printed
        .lines()
        .filter_map(|line| line.strip_prefix("connection "))
    {
        let (words, steps) = line.split_once(" = ").ok_or("no steps")?;
        let words: Vec<&str> = words.split(' ').collect();
        let [expected, unwatched, local, remote, holders @ ..] = words.as_slice() else {
            return Err(format!("cannot parse {line}").into());
        };
        let found = findings.remove(&format!("{local} {remote}"));
        if *expected == "late" {
            continue;
        }
        on_time += 1;
        let holders = holders.iter().copied().map(String::from).collect();
        let wanted = (*expected != "clean").then(|| ((*expected).to_owned(), holders));
        if condition == Condition::StoppedReader {
            // Nobody looked while the tracer was stopped: the holders are unknown, and so is how
            // long a socket was silent before it sent something.
            let kind = found.map_or_else(|| "clean".to_owned(), |(kind, _)| kind);
            if kind != *unwatched {
                wrong.extend(expect(&kind.as_str(), expected, steps).err());
            }
        } else {
            wrong.extend(expect(&found, &wanted, steps).err());
        }
    }
    wrong.extend(expect(&findings, &BTreeMap::new(), "unexpected findings").err());
    if !wrong.is_empty() {
        return Err(failed(wrong.join("\n")).into());
    }
    if on_time < MIN_ON_TIME {
        return Err(failed(format!("only {on_time} connections ran on time")).into());
    }
    Ok(())
}

/// Returns kind and holders of each finding that denies, by its connection.
fn denied(report: &Value) -> BTreeMap<String, Found> {
    let denied = case::findings(report)
        .iter()
        .filter(|found| found["level"] == "deny");
    denied
        .map(|found| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let ends = &found["tuple"];
            let holders = found["holders"].as_array();
            let holders = holders
                .into_iter()
                .flatten()
                .map(|holder| format!("{}:{}", holder["pid"], holder["fd"]))
                .collect();
            let name = format!("{} {}", text(&ends["local"]), text(&ends["remote"]));
            (name, (text(&found["kind"]), holders))
        })
        .collect()
}
