//! A group of findings, with an example.

use std::fmt::Write as _;

use tracer_core::ledger::tcp_state_name;
use tracer_core::report::{Call, Group, Report, advice};
use tracer_core::verdict::{Finding, Holder, Kind, Level};

use super::{ERROR, WARNING, duration};

/// How many calls of a stack are shown.
const CALLS_SHOWN: usize = 12;
/// How many holders of one socket are named.
const HOLDERS_NAMED: usize = 16;

pub(super) fn write_group(
    text: &mut String,
    report: &Report<'_>,
    group: &Group<'_>,
) -> std::fmt::Result {
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
