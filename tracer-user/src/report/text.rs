//! The report for people, on a terminal.

mod groups;
mod screen;
mod targets;

use anstyle::{AnsiColor, Style};
use tracer_abi::counter::Counter;
use tracer_core::report::Report;
use tracer_core::verdict::{Level, Verdict};

use screen::{LINES, cut, divide, fit, wrap};

/// How many lines reasons, groups, targets and notes need at least if there are more of them. With
/// the other seven they fill a screen.
const REASON_LINES: usize = 4;
const GROUP_LINES: usize = 6;
const TARGET_LINES: usize = 4;
const NOTE_LINES: usize = 3;

const OK: Style = AnsiColor::Green.on_default().bold();
const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const DIMMED: Style = Style::new().dimmed();

/// Returns the report with ANSI styles; `anstream` strips them where they are not supported. It
/// fits on a screen: the JSON report has the rest.
#[must_use]
pub fn render(report: &Report<'_>) -> String {
    let verdict = verdict(report);
    let counts = counts(report);
    let reasons: Vec<Vec<String>> = report.reasons.iter().map(|it| row("", it)).collect();
    let notes: Vec<Vec<String>> = report.notes.iter().map(|it| row("note", it)).collect();
    let length = |paragraphs: &[Vec<String>]| paragraphs.iter().map(Vec::len).sum();
    let [for_groups, for_reasons, for_targets, for_notes] = divide(
        LINES - 1 - counts.len(),
        [
            (GROUP_LINES, groups::lines(report, LINES).len()),
            (REASON_LINES, length(&reasons)),
            (TARGET_LINES, targets::lines(report, LINES).len()),
            (NOTE_LINES, length(&notes)),
        ],
    );
    let lines = [
        vec![verdict],
        fit(&reasons, for_reasons, " reasons"),
        fit(&notes, for_notes, " notes"),
        counts,
        targets::lines(report, for_targets),
        groups::lines(report, for_groups),
    ];
    lines.concat().into_iter().map(|line| line + "\n").collect()
}

/// Returns a text with a word before it.
fn row(label: &str, text: &str) -> Vec<String> {
    wrap(&format!("{label:<11}"), 11, text)
}

fn verdict(report: &Report<'_>) -> String {
    let style = match report.verdict {
        Verdict::Clean => OK,
        Verdict::Leak => ERROR,
        Verdict::Inconclusive => WARNING,
    };
    format!(
        "verdict    {style}{}{style:#}  ({} denied, {} warned)",
        report.verdict.name(),
        report.ledger.findings().count(Level::Deny),
        report.ledger.findings().count(Level::Warn),
    )
}

fn counts(report: &Report<'_>) -> Vec<String> {
    let audit_log = report.audit_log;
    let of = |counter| audit_log.counters.of(counter);
    let walk = audit_log.walk.as_ref();
    let open = walk.map_or_else(|| "unknown".to_owned(), |walk| walk.open.to_string());
    let adopted = match of(Counter::Adopted) {
        0 => String::new(),
        adopted => format!("{adopted} adopted, "),
    };
    let sockets = format!(
        "{adopted}{} created, {} accepted, {} connected, {} released, {open} open",
        of(Counter::Created),
        of(Counter::Accepted),
        of(Counter::Connected),
        of(Counter::Released),
    );
    let mut lines = cut(row("sockets", &sockets), 1);
    if let Some(walk) = walk
        && !walk.unjudged.is_empty()
    {
        let sorts = walk.unjudged.iter();
        let listed: Vec<String> = sorts
            .map(|(sort, count)| format!("{count} {sort}"))
            .collect();
        let unjudged = format!("not judged: {}", listed.join(", "));
        lines.extend(cut(row("", &unjudged), 2));
    }
    let lost = audit_log.counters.lost_records();
    let counts = report.ledger.counts();
    let requests = format!(
        "{}{} streams bound, {} ended; {} sockets never annotated",
        if lost > 0 { "at least " } else { "" },
        counts.streams_bound,
        counts.streams_ended,
        audit_log.counters.unowned(),
    );
    lines.extend(cut(row("requests", &requests), 1));
    let outlive = report.ledger.outlive();
    if !outlive.is_empty() {
        let outlive = format!(
            "p50 {}, p99 {}, max {} (grace {})",
            duration(outlive.value_at_quantile(0.5)),
            duration(outlive.value_at_quantile(0.99)),
            duration(outlive.max()),
            duration(audit_log.window.grace_ns),
        );
        lines.extend(cut(row("outlive", &outlive), 1));
    }
    let agrees = if report.agrees() {
        "agrees"
    } else {
        "does not agree"
    };
    let witness = format!(
        "{agrees}, walks {}; records {}, lost {lost}",
        audit_log.scans, audit_log.records,
    );
    lines.extend(cut(row("witness", &witness), 1));
    lines
}

/// Formats a duration in the unit that gives one to three digits.
#[must_use]
pub fn duration(ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are printed")]
    let of = |unit: u64| ns as f64 / unit as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.0} µs", of(1_000)),
        1_000_000..1_000_000_000 => format!("{:.1} ms", of(1_000_000)),
        1_000_000_000..600_000_000_000 => format!("{:.1} s", of(1_000_000_000)),
        600_000_000_000..7_200_000_000_000 => format!("{:.0} m", of(60_000_000_000)),
        _ => format!("{:.1} h", of(3_600_000_000_000)),
    }
}

#[cfg(test)]
mod tests;
