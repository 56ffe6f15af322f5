//! Lives at random: many sockets at once, each with a plan of its own, and a model of the rules that says what must be found of it.
//!
//! `WATERTIGHT_TEST_SEED` makes the same plans again; a test that fails has printed its seed.

mod deed;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::case::{self, COMMIT, expect};
pub(crate) use deed::commit;

/// What the program under audit does, with annotations and without.
const DEEDS: [&str; 2] = ["lives", "lives_unannotated"];
/// Lives lived at once.
const COUNT: u64 = 240;
/// The grace, as the tracer is told it.
const GRACE: &str = "1s";
/// How long the tracer is left alone, and how long it is stopped, where it is.
const BEFORE_A_STOP: Duration = Duration::from_millis(1500);
const A_STOP: Duration = Duration::from_secs(4);
/// How many, of both ends of the connections, must be lived in time: half of them.
const TIMELY: u64 = COUNT;

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let circumstances = [
        (Circumstance::Ordinary, ""),
        (Circumstance::TinyRing, "_though_records_are_lost"),
        (Circumstance::StoppedReader, "_though_the_reader_stops"),
        (Circumstance::FewPlaces, "_though_places_are_few"),
    ];
    let mut trials = Vec::new();
    for deed in DEEDS {
        for (circumstance, suffix) in circumstances {
            let name = format!("{deed}_at_random_are_judged_by_the_rules{suffix}");
            let trial = Trial::test(name, move || {
                lives_are_judged_by_the_rules(deed, circumstance)
            });
            trials.push(trial.with_ignored_flag(skipped));
        }
    }
    trials
}

/// Under what the tracer has to judge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Circumstance {
    Ordinary,
    /// Most records are lost.
    TinyRing,
    /// It is stopped (SIGSTOP) again and again, for longer than a wait.
    StoppedReader,
    /// Most sockets find their place taken, and every place is used many times.
    FewPlaces,
}

impl Circumstance {
    /// What the tracer is told of it.
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
    thread::sleep(BEFORE_A_STOP);
    while tracer.try_wait()?.is_none() {
        kill_process(pid, Signal::STOP)?;
        thread::sleep(A_STOP);
        kill_process(pid, Signal::CONT)?;
        thread::sleep(BEFORE_A_STOP);
    }
    Ok(())
}

/// What is known of a life: kind, and holders.
type Guilt = (String, BTreeSet<String>);

fn lives_are_judged_by_the_rules(deed: &str, circumstance: Circumstance) -> Result<(), Failed> {
    let seed = std::env::var("WATERTIGHT_TEST_SEED")
        .unwrap_or_else(|_| RandomState::new().hash_one(deed).to_string());
    eprintln!("{deed}: WATERTIGHT_TEST_SEED={seed}");
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("report.json");
    // Files, which take any amount without a reader.
    let (printed, said) = (
        directory.path().join("stdout"),
        directory.path().join("stderr"),
    );
    let mut tracer = Command::new(env!("CARGO_BIN_EXE_tracer"))
        .args(["run", "--grace", GRACE])
        .args(circumstance.options())
        .arg("--json")
        .arg(&json)
        .arg("--")
        .arg(std::env::current_exe()?)
        .args([COMMIT, deed])
        .env("WATERTIGHT_TEST_SEED", &seed)
        .stdin(Stdio::null())
        .stdout(File::create(&printed)?)
        .stderr(File::create(&said)?)
        .spawn()?;
    if circumstance == Circumstance::StoppedReader {
        stop_often(&mut tracer)?;
    }
    tracer.wait()?;
    let printed = std::fs::read_to_string(printed)?;
    let said = std::fs::read_to_string(said)?;
    let failed = |what: String| format!("seed {seed}: {what}\n{said}");
    let report = std::fs::read(json).map_err(|error| failed(error.to_string()))?;
    let report: Value = serde_json::from_slice(&report)?;
    expect(&report["verdict"], &"leak".into(), "verdict").map_err(failed)?;
    expect(&report["witness"]["agrees"], &true.into(), "agrees").map_err(failed)?;
    let lost = report["completeness"]["lost_events"] != 0;
    let loses = circumstance == Circumstance::TinyRing;
    expect(&lost, &loses, "records were lost").map_err(failed)?;
    if circumstance == Circumstance::FewPlaces {
        let without_place = report["completeness"]["without_place"].as_u64();
        expect(&(without_place > Some(0)), &true, "some had no place").map_err(failed)?;
    }
    let mut found = found(&report);
    let (mut timely, mut wrong) = (0, Vec::new());
    for life in printed
        .lines()
        .filter_map(|line| line.strip_prefix("life "))
    {
        let (words, plan) = life.split_once(" = ").ok_or("no plan")?;
        let words: Vec<&str> = words.split(' ').collect();
        let [what, local, remote, holders @ ..] = words.as_slice() else {
            return Err(format!("no life: {life}").into());
        };
        let guilt = found.remove(&format!("{local} {remote}"));
        if *what == "unsure" {
            continue;
        }
        timely += 1;
        let holders = holders.iter().copied().map(String::from).collect();
        let wanted = (*what != "innocent").then(|| ((*what).to_owned(), holders));
        if circumstance == Circumstance::StoppedReader {
            // Who had it while nobody looked is not known.
            let kind = |guilt: Option<Guilt>| guilt.map(|(kind, _)| kind);
            wrong.extend(expect(&kind(guilt), &kind(wanted), plan).err());
        } else {
            wrong.extend(expect(&guilt, &wanted, plan).err());
        }
    }
    wrong.extend(expect(&found, &BTreeMap::new(), "findings of nobody").err());
    if !wrong.is_empty() {
        return Err(failed(wrong.join("\n")).into());
    }
    if timely < TIMELY {
        return Err(failed(format!("{timely} lives were lived in time")).into());
    }
    Ok(())
}

/// Returns kind and holders of each finding that denies, by its connection.
fn found(report: &Value) -> BTreeMap<String, Guilt> {
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
