//! What Prometheus' own checker says of the counters. It is part of Debian's package prometheus.

use std::io::Write as _;
use std::process::{Command, Stdio};

use tunnel::metrics::Metrics;

use crate::rig::{Rig, round_trip};

/// Set where no test may be skipped.
const STRICT: &str = "WATERTIGHT_TEST_STRICT";

/// Returns what `promtool check metrics` complains about, a line each; `None` where it is not
/// installed.
fn complaints(text: &str) -> Option<Vec<String>> {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        assert!(
            std::env::var_os(STRICT).is_none(),
            "promtool is missing: install prometheus"
        );
        // The harness hides it unless it is asked to show the output.
        eprintln!("skipped: promtool is not installed; it is in the package prometheus");
        return None;
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    Some(said.lines().map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_has_nothing_to_say_but_of_remotedialers_names() {
    let rig = Rig::start_with(|server| server.compat_metrics = None, |_| {}).await;
    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
    let server = rig.server.counters().text().unwrap();
    let agent = Metrics::new(None).unwrap().text().unwrap();
    for text in [&server, &agent] {
        if let Some(complaints) = complaints(text) {
            assert!(complaints.is_empty(), "{complaints:?}");
        }
    }
    // This agent has remotedialer's counters, too; their names are a contract, and show that the
    // checker does complain.
    let text = rig.agent.counters().unwrap().text().unwrap();
    if let Some(complaints) = complaints(&text) {
        assert!(!complaints.is_empty(), "{text}");
        for complaint in complaints {
            assert!(
                complaint.starts_with("session_server_total_"),
                "{complaint}"
            );
        }
    }
}
