//! The report for people, on a terminal.

mod groups;
mod targets;

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use tracer_abi::counter::Counter;
use tracer_core::report::Report;
use tracer_core::verdict::{Level, Verdict};

use groups::write_group;
use targets::write_targets;

/// How many groups that deny, and how many that warn, are shown: a screen at most.
const DENIED_SHOWN: usize = 4;
const WARNED_SHOWN: usize = 3;
const OK: Style = AnsiColor::Green.on_default().bold();
const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const DIMMED: Style = Style::new().dimmed();

/// Returns the report with ANSI styles; `anstream` strips them where they are not supported.
#[must_use]
pub fn render(report: &Report<'_>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut text, report);
    text
}

fn write_all(text: &mut String, report: &Report<'_>) -> std::fmt::Result {
    let style = match report.verdict {
        Verdict::Clean => OK,
        Verdict::Leak => ERROR,
        Verdict::Inconclusive => WARNING,
    };
    let denied = report.ledger.findings().count(Level::Deny);
    let warned = report.ledger.findings().count(Level::Warn);
    writeln!(
        text,
        "verdict    {style}{}{style:#}  ({denied} denied, {warned} warned)",
        report.verdict.name()
    )?;
    for reason in &report.reasons {
        writeln!(text, "           {reason}")?;
    }
    for note in &report.notes {
        writeln!(text, "note       {note}")?;
    }
    write_counts(text, report)?;
    write_targets(
        text,
        &report.ledger.peers().top(usize::MAX),
        report.audit_log.window.end_ns,
        report.audit_log.counters.lost_records() == 0,
    )?;
    for (level, listed) in [(Level::Deny, DENIED_SHOWN), (Level::Warn, WARNED_SHOWN)] {
        let groups = || report.groups.iter().filter(|group| group.level == level);
        for group in groups().take(listed) {
            write_group(text, report, group)?;
        }
        let rest = groups().count().saturating_sub(listed);
        if rest > 0 {
            let name = level.name();
            writeln!(
                text,
                "{DIMMED}… and {rest} more groups that {name}: --json FILE has them{DIMMED:#}"
            )?;
        }
    }
    Ok(())
}

fn write_counts(text: &mut String, report: &Report<'_>) -> std::fmt::Result {
    let audit_log = report.audit_log;
    let of = |counter| audit_log.counters.of(counter);
    let open = audit_log
        .walk
        .as_ref()
        .map_or_else(|| "unknown".to_owned(), |walk| walk.open.to_string());
    let adopted = match of(Counter::Adopted) {
        0 => String::new(),
        adopted => format!("{adopted} adopted, "),
    };
    writeln!(
        text,
        "sockets    {adopted}{} created, {} accepted, {} connected, {} released, {open} open",
        of(Counter::Created),
        of(Counter::Accepted),
        of(Counter::Connected),
        of(Counter::Released),
    )?;
    let counts = report.ledger.counts();
    if let Some(walk) = &audit_log.walk
        && !walk.unjudged.is_empty()
    {
        let sorts = walk.unjudged.iter();
        let listed: Vec<String> = sorts
            .map(|(sort, count)| format!("{count} {sort}"))
            .collect();
        writeln!(text, "           not judged: {}", listed.join(", "))?;
    }
    writeln!(
        text,
        "requests   {}{} streams bound, {} ended; {} sockets never annotated",
        if audit_log.counters.lost_records() > 0 {
            "at least "
        } else {
            ""
        },
        counts.streams_bound,
        counts.streams_ended,
        audit_log.counters.unowned(),
    )?;
    let outlive = report.ledger.outlive();
    if !outlive.is_empty() {
        writeln!(
            text,
            "outlive    p50 {}, p99 {}, max {} (grace {})",
            duration(outlive.value_at_quantile(0.5)),
            duration(outlive.value_at_quantile(0.99)),
            duration(outlive.max()),
            duration(audit_log.window.grace_ns),
        )?;
    }
    let lost = audit_log.counters.lost_records();
    writeln!(
        text,
        "witness    {}, walks {}; records {}, lost {lost}",
        if report.agrees() {
            "agrees"
        } else {
            "does not agree"
        },
        audit_log.scans,
        audit_log.records,
    )
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
        _ => format!("{:.1} s", of(1_000_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (85_400, "85 µs"),
            (1_260_000, "1.3 ms"),
            (90_000_000_000, "90.0 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }
}
