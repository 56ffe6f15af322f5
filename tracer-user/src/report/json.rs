//! The JSON report, schema "watertight.audit/1": a contract that programs rely on.
//!
//! Counts are exact; what cannot be known is null. 64-bit numbers that identify something (cookie,
//! session, stream) are strings, since JSON readers lose bits of large numbers. The report is
//! written while it is walked, so 100,000 findings are never in memory twice. Each finding is one
//! line.

mod finding;
mod layout;
mod line;

use std::collections::BTreeMap;
use std::io::{self, Write};

use finding::{FindingRow, Frame, frames};
use layout::Layout;
pub use line::write_change;
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};
use tracer_abi::counter::Counter;
use tracer_core::ledger::Tallies;
use tracer_core::report::{AuditLog, PEERS_LISTED, Report, split_listed};
use tracer_core::verdict::Level;

/// The schema's name.
pub const SCHEMA: &str = "watertight.audit/1";

/// How many groups are listed.
const GROUPS_LISTED: usize = 1000;

/// Writes the report.
///
/// # Errors
///
/// When `to` cannot be written.
pub fn write(report: &Report<'_>, to: impl Write) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(to, Layout::default());
    let document = Document::of(report);
    document.serialize(&mut serializer).map_err(io::Error::from)
}

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    verdict: &'static str,
    reasons: &'a [String],
    notes: &'a [String],
    window: Window,
    target: Target<'a>,
    kernel: Kernel<'a>,
    completeness: Completeness<'a>,
    sockets: Sockets,
    /// What no rule judges, by family, as of the last walk.
    not_judged: Option<&'a BTreeMap<&'static str, u64>>,
    owners: Owners,
    outlive_ns: Outlive,
    witness: Witness,
    findings_by_level: ByLevel,
    peers: Vec<Peer<'a>>,
    listeners: Vec<Peer<'a>>,
    groups: Vec<Group<'a>>,
    #[serde(serialize_with = "findings")]
    findings: &'a Report<'a>,
}

#[derive(Serialize)]
struct Window {
    start_ns: u64,
    end_ns: u64,
    grace_ms: u64,
}

#[derive(Serialize)]
struct Target<'a> {
    cgroup: &'a str,
    command: &'a [String],
    exit_status: Option<i32>,
}

#[derive(Serialize)]
struct Kernel<'a> {
    release: &'a str,
}

#[derive(Serialize)]
struct Completeness<'a> {
    events: u64,
    lost_events: u64,
    lost_by_stage: LostByStage,
    missed_runs: u64,
    links: Vec<Link<'a>>,
    resyncs: u64,
    without_place: u64,
    baseline_sockets: u64,
    witnessed_only: u64,
    malformed_annotations: u64,
}

/// Where records were lost on the way from the kernel to the report.
#[derive(Serialize)]
struct LostByStage {
    ring: u64,
    violations_ring: u64,
    stacks_ring: u64,
    socket_storage: u64,
    ends_table: u64,
    annotators_table: u64,
    decoding: u64,
}

impl LostByStage {
    fn of(audit_log: &AuditLog) -> Self {
        let of = |counter| audit_log.counters.of(counter);
        Self {
            ring: of(Counter::RingFailures),
            violations_ring: of(Counter::ViolationFailures),
            stacks_ring: of(Counter::StackFailures),
            socket_storage: of(Counter::StorageFailures),
            ends_table: of(Counter::EndFailures),
            annotators_table: of(Counter::AnnotatorFailures),
            decoding: audit_log.undecodable,
        }
    }
}

#[derive(Serialize)]
struct Link<'a> {
    program: &'a str,
    link_id: u32,
    attached: bool,
}

fn links(audit_log: &AuditLog) -> Vec<Link<'_>> {
    let links = audit_log.attachments.iter();
    links
        .map(|of| Link {
            program: &of.program,
            link_id: of.link_id,
            attached: of.attached,
        })
        .collect()
}

#[derive(Serialize)]
struct Sockets {
    created: u64,
    connected: u64,
    accepted: u64,
    released: u64,
    open: Option<u64>,
    unowned: u64,
}

#[derive(Serialize)]
struct Owners {
    listeners: Option<u64>,
    links: Option<u64>,
    streams_bound: Option<u64>,
    streams_ended: Option<u64>,
}

#[derive(Serialize)]
struct Outlive {
    count: Option<u64>,
    p50: Option<u64>,
    p99: Option<u64>,
    max: Option<u64>,
}

#[derive(Serialize)]
struct Witness {
    scans: u64,
    agrees: bool,
    only_in_ledger: Option<u64>,
    only_in_kernel: Option<u64>,
}

#[derive(Serialize)]
struct ByLevel {
    deny: u64,
    warn: u64,
}

#[derive(Serialize)]
struct Peer<'a> {
    address: &'a str,
    opened: Option<u64>,
    released: Option<u64>,
    open: u64,
    oldest_ms: Option<u64>,
}

impl<'a> Document<'a> {
    fn of(report: &'a Report<'a>) -> Self {
        let audit_log = report.audit_log;
        let of = |counter| audit_log.counters.of(counter);
        let walk = audit_log.walk.as_ref();
        let counts = report.ledger.counts();
        // What only records tell is unknown if some were lost.
        let unless_lost = |count: u64| (audit_log.counters.lost_records() == 0).then_some(count);
        let outlive = report.ledger.outlive();
        let measured = |value: u64| (!outlive.is_empty()).then_some(value);
        Self {
            schema: SCHEMA,
            verdict: report.verdict.name(),
            reasons: &report.reasons,
            notes: &report.notes,
            window: Window {
                start_ns: audit_log.window.start_ns,
                end_ns: audit_log.window.end_ns,
                grace_ms: audit_log.window.grace_ns / 1_000_000,
            },
            target: Target {
                cgroup: &audit_log.target.cgroup,
                command: &audit_log.target.command,
                exit_status: audit_log.target.exit_status,
            },
            kernel: Kernel {
                release: &audit_log.kernel,
            },
            completeness: Completeness {
                events: audit_log.records,
                lost_events: audit_log.counters.lost_records(),
                lost_by_stage: LostByStage::of(audit_log),
                missed_runs: audit_log.missed_runs(),
                links: links(audit_log),
                resyncs: audit_log.resyncs,
                without_place: of(Counter::WithoutSlot),
                baseline_sockets: of(Counter::Adopted),
                witnessed_only: counts.witnessed_only,
                malformed_annotations: of(Counter::Refused),
            },
            sockets: Sockets {
                created: of(Counter::Created),
                connected: of(Counter::Connected),
                accepted: of(Counter::Accepted),
                released: of(Counter::Released),
                open: walk.map(|walk| walk.open),
                unowned: audit_log.counters.unowned(),
            },
            not_judged: audit_log.walk.as_ref().map(|walk| &walk.unjudged),
            owners: Owners {
                listeners: unless_lost(counts.listeners),
                links: unless_lost(counts.links),
                streams_bound: unless_lost(counts.streams_bound),
                streams_ended: unless_lost(counts.streams_ended),
            },
            outlive_ns: Outlive {
                count: unless_lost(outlive.len()),
                p50: measured(outlive.value_at_quantile(0.5)),
                p99: measured(outlive.value_at_quantile(0.99)),
                max: measured(outlive.max()),
            },
            witness: Witness {
                scans: audit_log.scans,
                agrees: report.agrees(),
                only_in_ledger: walk.map(|walk| walk.only_in_ledger),
                only_in_kernel: walk.map(|walk| walk.only_in_kernel),
            },
            findings_by_level: ByLevel {
                deny: report.ledger.findings().count(Level::Deny),
                warn: report.ledger.findings().count(Level::Warn),
            },
            peers: peers(report, report.ledger.peers(), &unless_lost),
            listeners: peers(report, report.ledger.listeners(), &unless_lost),
            groups: groups(report),
            findings: report,
        }
    }
}

/// Returns those of `tallies` with most open connections.
fn peers<'a>(
    report: &Report<'_>,
    tallies: &'a Tallies,
    unless_lost: &impl Fn(u64) -> Option<u64>,
) -> Vec<Peer<'a>> {
    let end_ns = report.audit_log.window.end_ns;
    tallies
        .top(PEERS_LISTED)
        .into_iter()
        .map(|(address, tally)| Peer {
            address,
            opened: unless_lost(tally.released() + tally.open),
            released: unless_lost(tally.released()),
            open: tally.open,
            oldest_ms: tally
                .oldest_ns
                .map(|oldest_ns| end_ns.saturating_sub(oldest_ns) / 1_000_000),
        })
        .collect()
}

#[derive(Serialize)]
struct Group<'a> {
    kind: &'static str,
    level: &'static str,
    program: Option<&'a str>,
    executable: Option<&'a str>,
    target: Option<&'a str>,
    stack: Option<Vec<Frame<'a>>>,
    sockets: u64,
    oldest_ms: u64,
    growth_per_min: Option<f64>,
    example: FindingRow<'a>,
    advice: String,
}

fn groups<'a>(report: &'a Report<'a>) -> Vec<Group<'a>> {
    let end_ns = report.audit_log.window.end_ns;
    let (listed, _) = split_listed(&report.groups, GROUPS_LISTED);
    listed
        .into_iter()
        .map(|group| Group {
            kind: group.kind.name(),
            level: group.level.name(),
            program: group.program,
            executable: group.executable,
            target: group.target.as_deref(),
            stack: group.stack.map(|calls| frames(calls)),
            sockets: group.sockets,
            oldest_ms: end_ns.saturating_sub(group.oldest_ns) / 1_000_000,
            growth_per_min: group.growth_per_min.map(|growth| growth.round()),
            example: FindingRow::of(group.example, group.level, end_ns)
                .with_stack(group.example.id, report.audit_log),
            advice: group.advice(),
        })
        .collect()
}

fn findings<S: Serializer>(report: &Report<'_>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(report.findings.len()))?;
    let end_ns = report.audit_log.window.end_ns;
    for finding in &report.findings {
        let level = report.ledger.findings().levels().of(finding.kind);
        let row = FindingRow::of(finding, level, end_ns);
        list.serialize_element(&row.with_stack(finding.id, report.audit_log))?;
    }
    list.end()
}
