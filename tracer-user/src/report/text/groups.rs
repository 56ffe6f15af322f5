//! The groups of findings, each with an example and what to do.

use tracer_core::ledger::tcp_state_name;
use tracer_core::report::{Call, Group, Report, own_call};
use tracer_core::verdict::{Finding, Holder, Kind, Level};

use super::screen::{COLUMNS, LINES, columns, cut, more, tail, wrap};
use super::{ERROR, WARNING, duration};

/// For how many further groups the example of the first is cut.
const OTHERS_SHOWN: usize = 4;
/// How many calls of a stack are shown, the innermost first.
const CALLS_SHOWN: usize = 12;
/// How many holders of one socket are named.
const HOLDERS_NAMED: usize = 4;
/// How many columns the path of an executable and the name of a function take.
const EXECUTABLE_COLUMNS: usize = 40;
const FUNCTION_COLUMNS: usize = 50;
/// How many lines one sentence takes.
const SENTENCE_LINES: usize = 2;
/// Where the lines of an example begin.
const INDENT: usize = 5;

/// A group, as lines.
struct Block {
    /// What it is.
    head: Vec<String>,
    /// One of its findings; only if the group denies, as JSON has it anyway.
    example: Vec<String>,
    advice: Vec<String>,
}

impl Block {
    fn of(report: &Report<'_>, group: &Group<'_>) -> Self {
        let (example, advice) = if group.level == Level::Deny {
            (example(report, group.example), what_to_do(group))
        } else {
            (Vec::new(), Vec::new())
        };
        Self {
            head: head(report, group),
            example,
            advice,
        }
    }

    fn len(&self) -> usize {
        self.head.len() + self.example.len() + self.advice.len()
    }

    /// Returns at most `limit` lines: the example is cut first.
    fn into_lines(self, limit: usize) -> Vec<String> {
        let room = limit.saturating_sub(self.head.len() + self.advice.len());
        let lines = [self.head, cut(self.example, room), self.advice].concat();
        cut(lines, limit)
    }
}

/// Returns the groups, in at most `limit` lines: those that deny before those that warn, the
/// largest first. The first one has its example, the others if there is room.
pub(super) fn lines(report: &Report<'_>, limit: usize) -> Vec<String> {
    let of = |level| report.groups.iter().filter(move |it| it.level == level);
    let groups = of(Level::Deny).chain(of(Level::Warn));
    let total = groups.clone().count();
    let blocks: Vec<Block> = groups
        .take(LINES)
        .map(|group| Block::of(report, group))
        .collect();
    let Some(first) = blocks.first() else {
        return Vec::new();
    };
    // Other causes say more than a long example.
    let others = blocks.iter().skip(1).take(OTHERS_SHOWN);
    let others: usize = others.map(|block| block.head.len()).sum();
    let others = others + usize::from(total > 1 + OTHERS_SHOWN);
    let least = first.head.len() + first.advice.len() + 1;
    let room = limit.saturating_sub(others).max(least);
    let room = room.min(limit.saturating_sub(usize::from(total > 1)));
    let first_lines = first.len().min(room);
    let mut left = limit.saturating_sub(first_lines);
    let mut shown = 1;
    for block in blocks.iter().skip(1) {
        let is_last = shown + 1 == total;
        if block.head.len() + usize::from(!is_last) > left {
            break;
        }
        left -= block.head.len();
        shown += 1;
    }
    let rest = total - shown;
    left = left.saturating_sub(usize::from(rest > 0));
    let mut lines = Vec::new();
    for (n, block) in blocks.into_iter().take(shown).enumerate() {
        let details = block.len() - block.head.len();
        if n == 0 {
            lines.extend(block.into_lines(first_lines));
        } else if details <= left {
            left -= details;
            lines.extend(block.into_lines(LINES));
        } else {
            lines.extend(block.head);
        }
    }
    if rest > 0 {
        lines.push(more(rest, " groups"));
    }
    lines
}

fn head(report: &Report<'_>, group: &Group<'_>) -> Vec<String> {
    let plural = if group.sockets == 1 {
        "socket"
    } else {
        "sockets"
    };
    let mut text = format!("{}  {} {plural}", group.kind, group.sockets);
    if let Some(program) = group.program {
        text += &format!(" of {program}");
    }
    if let Some(executable) = group.executable {
        text += &format!(" ({})", tail(executable, EXECUTABLE_COLUMNS));
    }
    match &group.target {
        Some(target) if group.example.accepted => text += &format!(" {target}"),
        Some(target) => text += &format!(" to {target}"),
        None => {}
    }
    let end_ns = report.audit_log.window.end_ns;
    let oldest = duration(end_ns.saturating_sub(group.oldest_ns));
    text += &format!(", oldest {oldest}");
    if let Some(growth) = group.growth_per_min
        && group.sockets > 2
    {
        text += &format!(", {growth:.0} more a minute");
    }
    let level = group.level.name();
    let mut lines = cut(wrap(&format!("{level} "), INDENT, &text), SENTENCE_LINES);
    if let Some(first) = lines.first_mut()
        && let Some(text) = first.strip_prefix(level)
    {
        let style = if group.level == Level::Deny {
            ERROR
        } else {
            WARNING
        };
        *first = format!("{style}{level}{style:#}{text}");
    }
    lines
}

fn what_to_do(group: &Group<'_>) -> Vec<String> {
    indented(&format!("what to do: {}", group.advice()))
}

fn indented(text: &str) -> Vec<String> {
    cut(wrap(&" ".repeat(INDENT), INDENT, text), SENTENCE_LINES)
}

fn example(report: &Report<'_>, finding: &Finding) -> Vec<String> {
    let mut text = String::new();
    if let Some(tuple) = finding.tuple {
        text += &format!("{} -> {}  ", tuple.local, tuple.remote);
    }
    if let Some(state) = finding.tcp_state {
        text += &format!("{}  ", tcp_state_name(state));
    }
    text += &describe(finding);
    let mut lines = indented(&text);
    if let Some(info) = &finding.owner {
        let role = info
            .role
            .map_or("unknown", tracer_abi::annotation::Role::name);
        let label = info.label.as_deref().unwrap_or_default();
        let owner = info.owner;
        lines.extend(indented(&format!(
            "{role} {}/{} {label}",
            owner.session, owner.stream
        )));
    }
    if !finding.holders.is_empty() {
        lines.extend(indented(&format!("held by {}", holders(finding))));
    }
    if let Some((pid, comm)) = &finding.releaser {
        lines.extend(indented(&format!("released by {comm}[{pid}]")));
    } else if let Some((pid, comm)) = &finding.opener {
        lines.extend(indented(&format!("opened by {comm}[{pid}]")));
    }
    let calls = report.audit_log.stacks.get(&finding.id);
    if let Some(calls) = calls {
        lines.extend(stack(calls));
    }
    if let Some(gap) = report.audit_log.stack_gaps.get(&finding.id) {
        let prefix = if calls.is_some() { "..." } else { "no stack:" };
        let start = format!("     {prefix:>9} ");
        lines.extend(cut(wrap(&start, start.len(), gap.reason()), SENTENCE_LINES));
    }
    lines
}

/// Returns the program's own innermost call and what called it; the JSON report has all calls.
fn stack(calls: &[Call]) -> Vec<String> {
    let mut lines = Vec::new();
    let inner = own_call(calls).unwrap_or_default();
    for (n, call) in calls.iter().skip(inner).take(CALLS_SHOWN).enumerate() {
        let prefix = if n == 0 { "opened in" } else { "from" };
        let function = tail(call.function.as_deref().unwrap_or("?"), FUNCTION_COLUMNS);
        let place = match (&call.source, &call.module) {
            (Some(source), _) => source.clone(),
            (None, Some(module)) => format!("{module}+{:#x}", call.offset),
            (None, None) => format!("{:#x}", call.offset),
        };
        let text = format!("     {prefix:>9} {function}  ");
        let room = COLUMNS.saturating_sub(columns(&text));
        lines.push(text + &tail(&place, room));
    }
    let outer = calls.len().saturating_sub(inner + CALLS_SHOWN);
    if outer > 0 {
        lines.push(format!("     {:>9} {outer} more", "..."));
    }
    if inner > 0 {
        let plural = if inner == 1 { "call" } else { "calls" };
        lines.push(format!(
            "     {:>9} {inner} {plural} of its libraries",
            "through"
        ));
    }
    lines
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
