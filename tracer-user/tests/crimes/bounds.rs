//! The bounds of the tracer, at the size that it is made for.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::case::{self, FIXTURE, LEAK, expect};

/// Sockets that the program under audit leaves open.
const SOCKETS: usize = 100_000;
/// The most memory that the tracer may use, in KiB: 200 MB.
const PEAK_KIB: u64 = 200_000_000 / 1024;
/// How often the memory is read: the kernel shows it for a living process only.
const MEASURE_INTERVAL: Duration = Duration::from_millis(5);

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    vec![
        Trial::test("a_hundred_thousand_leaks_are_named", || {
            a_hundred_thousand_leaks_are_named()
        })
        .with_ignored_flag(skipped),
    ]
}

fn a_hundred_thousand_leaks_are_named() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("report.json");
    let stderr = directory.path().join("stderr");
    let mut tracer = Command::new(env!("CARGO_BIN_EXE_tracer"))
        .args(["run", "--json"])
        .arg(&json)
        .arg("--")
        .arg(std::env::current_exe()?)
        .args([FIXTURE, "many_held"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&stderr)?)
        .spawn()?;
    let mut stdout = tracer.stdout.take().ok_or("no pipe")?;
    let printed = thread::spawn(move || {
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).map(|_| printed)
    });
    let (status, peak_kib) = wait_and_measure(&mut tracer)?;
    let printed = printed.join().map_err(|_| "the reader failed")??;
    let stderr = std::fs::read_to_string(stderr)?;
    if status.code() != Some(LEAK) {
        return Err(format!("{status}: {stderr}").into());
    }
    let report: Value = serde_json::from_slice(&std::fs::read(json)?)?;
    expect(&report["witness"]["agrees"], &true.into(), "witness agrees")?;
    let wanted = [("outlived-request", SOCKETS)].into_iter().collect();
    expect(&case::denied(&report), &wanted, "denied findings")?;
    let printed = case::printed_holders(&printed);
    expect(&printed.len(), &SOCKETS, "sockets held")?;
    // Compared as a whole: they are too many to print.
    expect(
        &(case::holders(&report) == printed),
        &true,
        "each is named with its holder",
    )?;
    let mut findings = case::findings(&report).iter();
    let named = findings.all(|found| found["holders"][0]["comm"].is_string());
    expect(&named, &true, "each holder has a name")?;
    if peak_kib > PEAK_KIB {
        return Err(format!("{peak_kib} KiB at the peak, more than {PEAK_KIB}").into());
    }
    Ok(())
}

/// Waits for the tracer's end and returns its peak memory too.
fn wait_and_measure(tracer: &mut Child) -> std::io::Result<(ExitStatus, u64)> {
    let status_file = format!("/proc/{}/status", tracer.id());
    let mut peak_kib = 0;
    loop {
        if let Some(status) = tracer.try_wait()? {
            return Ok((status, peak_kib));
        }
        let text = std::fs::read_to_string(&status_file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
        peak_kib = kib.unwrap_or(peak_kib);
        thread::sleep(MEASURE_INTERVAL);
    }
}
