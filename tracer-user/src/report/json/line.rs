//! A change of the findings as one line of JSON, schema "watertight.finding/1".

use std::io::{self, Write};
use std::time::SystemTime;

use serde::Serialize;
use tracer_core::ledger::Change;
use tracer_core::report::advice;
use tracer_core::verdict::Levels;

use super::finding::FindingRow;

/// The schema's name.
const SCHEMA: &str = "watertight.finding/1";

#[derive(Serialize)]
struct Line<'a> {
    schema: &'static str,
    /// RFC 3339, in UTC.
    time: String,
    state: &'static str,
    advice: &'static str,
    #[serde(flatten)]
    finding: FindingRow<'a>,
}

/// Writes a change that was seen at `now`, which is `now_ns` by the audit's clock.
///
/// # Errors
///
/// When `to` cannot be written.
pub fn write_change(
    change: &Change,
    levels: &Levels,
    now: SystemTime,
    now_ns: u64,
    mut to: impl Write,
) -> io::Result<()> {
    let (state, finding) = match change {
        Change::Found(finding) => ("found", finding),
        Change::Resolved(finding) => ("resolved", finding),
    };
    let line = Line {
        schema: SCHEMA,
        time: humantime::format_rfc3339_millis(now).to_string(),
        state,
        advice: advice(finding),
        finding: FindingRow::of(finding, levels.of(finding.kind), now_ns),
    };
    serde_json::to_writer(&mut to, &line)?;
    to.write_all(b"\n")
}
