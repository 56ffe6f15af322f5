//! The report for people, on a terminal.

mod targets;

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use tracer_abi::counter::Counter;
use tracer_core::ledger::tcp_state_name;
use tracer_core::report::{Call, Group, Report, advice};
use tracer_core::verdict::{Finding, Holder, Kind, Level, Verdict};

use targets::write_targets;

/// How many calls of a stack are shown.
const CALLS_SHOWN: usize = 12;

/// How many groups that deny, and how many that warn, are shown: a screen at most.
const DENIED_SHOWN: usize = 4;
const WARNED_SHOWN: usize = 3;
/// How many holders of one socket are named.
const HOLDERS_NAMED: usize = 16;

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

fn write_group(text: &mut String, report: &Report<'_>, group: &Group<'_>) -> std::fmt::Result {
    let style = if group.level == Level::Deny {
        ERROR
    } else {
        WARNING
    };
    let plural = if group.sockets == 1 {
        "socket"
    } else {
        "sockets"
    };
    write!(
        text,
        "{style}{}{style:#} {}  {} {plural}",
        group.level.name(),
        group.kind,
        group.sockets
    )?;
    if let Some(program) = group.program {
        write!(text, " of {program}")?;
    }
    if let Some(executable) = group.executable {
        write!(text, " ({executable})")?;
    }
    match &group.target {
        Some(target) if group.example.accepted => write!(text, " {target}")?,
        Some(target) => write!(text, " to {target}")?,
        None => {}
    }
    let oldest_ns = report
        .audit_log
        .window
        .end_ns
        .saturating_sub(group.oldest_ns);
    write!(text, ", oldest {}", duration(oldest_ns))?;
    match group.growth_per_min {
        Some(growth) if group.sockets > 2 => writeln!(text, ", {growth:.0} more a minute")?,
        Some(_) | None => writeln!(text)?,
    }
    // What warns is told in a line; the JSON report has the rest.
    if group.level == Level::Deny {
        write_finding(text, report, group.example)?;
        writeln!(text, "     what to do: {}", advice(group.example))?;
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
    writeln!(
        text,
        "sockets    {} created, {} accepted, {} connected, {} released, {open} open",
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

fn write_finding(text: &mut String, report: &Report<'_>, finding: &Finding) -> std::fmt::Result {
    write!(text, "    ")?;
    if let Some(tuple) = finding.tuple {
        write!(text, " {} -> {}", tuple.local, tuple.remote)?;
    }
    if let Some(state) = finding.tcp_state {
        write!(text, "  {}", tcp_state_name(state))?;
    }
    writeln!(text, "  {}", describe(finding))?;
    if let Some(info) = &finding.owner {
        let role = info
            .role
            .map_or("unknown", tracer_abi::annotation::Role::name);
        let label = info.label.as_deref().unwrap_or_default();
        writeln!(
            text,
            "     {role} {}/{} {label}",
            info.owner.session, info.owner.stream
        )?;
    }
    if !finding.holders.is_empty() {
        writeln!(text, "     held by {}", holders(finding))?;
    }
    if let Some((pid, comm)) = &finding.releaser {
        writeln!(text, "     released by {comm}[{pid}]")?;
    } else if let Some((pid, comm)) = &finding.opener {
        writeln!(text, "     opened by {comm}[{pid}]")?;
    }
    if let Some(calls) = report.audit_log.stacks.get(&finding.id) {
        write_stack(text, calls)?;
    }
    Ok(())
}

/// Writes the innermost calls; the JSON report has all of them.
fn write_stack(text: &mut String, calls: &[Call]) -> std::fmt::Result {
    for (n, call) in calls.iter().take(CALLS_SHOWN).enumerate() {
        let prefix = if n == 0 { "opened in" } else { "from" };
        let function = call.function.as_deref().unwrap_or("?");
        write!(text, "     {prefix:>9} {function}")?;
        match (&call.source, &call.module) {
            (Some(source), _) => writeln!(text, "  {source}")?,
            (None, Some(module)) => writeln!(text, "  {module}+{:#x}", call.offset)?,
            (None, None) => writeln!(text, "  {:#x}", call.offset)?,
        }
    }
    if calls.len() > CALLS_SHOWN {
        writeln!(text, "     {:>9} {} more", "...", calls.len() - CALLS_SHOWN)?;
    }
    Ok(())
}

fn describe(finding: &Finding) -> String {
    let until_ns = finding.released_ns.unwrap_or(finding.seen_ns);
    let lasted = duration(until_ns.saturating_sub(finding.since_ns));
    let open = if finding.released_ns.is_some() {
        "was open"
    } else {
        "is open"
    };
    match finding.kind {
        Kind::OutlivedRequest => format!("{open} {lasted} after the end of its request"),
        Kind::SessionRemnant => format!("{open} {lasted} after the end of its session"),
        Kind::PeerClosed if finding.released_ns.is_some() => {
            format!("the peer has finished sending, and the program closed it {lasted} later")
        }
        Kind::PeerClosed => format!("the peer has finished sending; {open} {lasted} after that"),
        Kind::DeadSocket => format!("{open} {lasted} after the connection died"),
        Kind::Unowned => format!("{open} {lasted} without an owner"),
        Kind::PileUp => format!("{open} {lasted} after newer ones took its place; they pile up"),
        Kind::Stuck => format!("{open}, and what waits made no progress for {lasted}"),
        Kind::Idle => format!("{open} {lasted} after the last byte"),
        Kind::OpenAtExit => "was open until its process exited".to_owned(),
    }
}

/// Names the holders. The JSON report has all of them.
fn holders(finding: &Finding) -> String {
    let one = |holder: &Holder| {
        let comm = holder.comm().unwrap_or("?");
        format!("{comm}[{}] fd {}", holder.pid, holder.fd)
    };
    let named: Vec<String> = finding
        .holders
        .iter()
        .take(HOLDERS_NAMED)
        .map(one)
        .collect();
    let listed = u64::try_from(finding.holders.len() - named.len()).unwrap_or(u64::MAX);
    match listed.saturating_add(finding.holders_unlisted) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
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
