//! The JSON report, schema "watertight.audit/1": a contract that programs rely on.

use serde_json::{Value, json};
use tracer_abi::record::Counter;

use super::{PEERS_LISTED, Report};
use crate::ledger::lifetime::tcp_state_name;
use crate::verdict::{Finding, Level};

/// The schema's name.
pub const SCHEMA: &str = "watertight.audit/1";

/// Returns the report. Counts are exact and what could not be known is null. Numbers of 64 bits that are names (cookie,
/// session, stream) are strings, since JSON readers lose bits of large numbers.
#[must_use]
pub fn render(report: &Report<'_>) -> Value {
    let proceedings = report.proceedings;
    let counters = &proceedings.counters;
    let of = |counter| counters.of(counter);
    let lost = of(Counter::RingFailures);
    let told = |count: u64| (lost == 0).then_some(count);
    let counts = report.ledger.counts();
    let outlive = report.ledger.outlive();
    let any = !outlive.is_empty();
    let walk = proceedings.walk.as_ref();
    let quantile = |q| any.then(|| outlive.value_at_quantile(q));
    json!({
        "schema": SCHEMA,
        "verdict": report.verdict.name(),
        "reasons": report.reasons,
        "window": {
            "start_ns": proceedings.window.start_ns,
            "end_ns": proceedings.window.end_ns,
            "grace_ms": proceedings.window.grace_ns / 1_000_000,
        },
        "target": {
            "cgroup": proceedings.target.cgroup,
            "command": proceedings.target.command,
            "exit_status": proceedings.target.exit_status,
        },
        "kernel": { "release": proceedings.kernel },
        "completeness": {
            "events": of(Counter::Events),
            "lost_events": lost,
            "resyncs": proceedings.resyncs,
            "baseline_sockets": of(Counter::Adopted),
            "malformed_annotations": of(Counter::Refused),
        },
        "sockets": {
            "created": of(Counter::Created),
            "connected": of(Counter::Connected),
            "accepted": of(Counter::Accepted),
            "released": of(Counter::Released),
            "open": walk.map(|walk| walk.open),
            "unowned": counters.unowned(),
        },
        "owners": {
            "listeners": told(counts.listeners),
            "links": told(counts.links),
            "streams_bound": told(counts.streams_bound),
            "streams_ended": told(counts.streams_ended),
        },
        "outlive_ns": {
            "count": told(outlive.len()),
            "p50": quantile(0.5),
            "p99": quantile(0.99),
            "max": any.then(|| outlive.max()),
        },
        "witness": {
            "scans": proceedings.scans,
            "agrees": report.agrees(),
            "only_in_ledger": walk.map(|walk| walk.only_in_ledger),
            "only_in_kernel": walk.map(|walk| walk.only_in_kernel),
        },
        "findings_by_level": {
            "deny": report.ledger.standing(Level::Deny),
            "warn": report.ledger.standing(Level::Warn),
        },
        "peers": peers(report, lost == 0),
        "findings": report
            .findings
            .iter()
            .map(|found| finding(found, report.ledger.levels().of(found.kind), proceedings.window.end_ns))
            .collect::<Vec<_>>(),
    })
}

fn peers(report: &Report<'_>, whole: bool) -> Vec<Value> {
    let end_ns = report.proceedings.window.end_ns;
    report
        .ledger
        .peers()
        .top(PEERS_LISTED)
        .into_iter()
        .map(|(address, peer)| {
            json!({
                "address": address,
                "opened": whole.then_some(peer.released + peer.open),
                "released": whole.then_some(peer.released),
                "open": peer.open,
                "oldest_ms": peer.oldest_ns.map(|oldest_ns| end_ns.saturating_sub(oldest_ns) / 1_000_000),
            })
        })
        .collect()
}

fn finding(found: &Finding, level: Level, end_ns: u64) -> Value {
    let until_ns = found.released_ns.unwrap_or(end_ns);
    json!({
        "kind": found.kind.name(),
        "level": level.name(),
        "cookie": found.cookie.map(|cookie| cookie.to_string()),
        "tuple": found.tuple.map(|tuple| json!({
            "local": tuple.local.to_string(),
            "remote": tuple.remote.to_string(),
        })),
        "tcp_state": found.tcp_state.map(tcp_state_name),
        "owner": found.owner.as_ref().map(|note| json!({
            "session": note.owner.session.to_string(),
            "stream": note.owner.stream.to_string(),
            "role": note.role.map(tracer_abi::annotation::Role::name),
            "label": note.label,
        })),
        "holders": found.holders.iter().map(|holder| json!({
            "pid": holder.pid,
            "comm": holder.comm,
            "fd": holder.fd,
        })).collect::<Vec<_>>(),
        "opened_by": process(found.opener.as_ref()),
        "released_by": process(found.releaser.as_ref()),
        "opened_ns": found.opened_ns,
        "ended_ns": found.ended_ns,
        "since_ns": found.since_ns,
        "released_ns": found.released_ns,
        "age_ms": until_ns.saturating_sub(found.opened_ns) / 1_000_000,
        "bytes_in": found.bytes_in,
        "bytes_out": found.bytes_out,
        "unread_bytes": found.unread,
        "unsent_bytes": found.unsent,
    })
}

fn process(process: Option<&(u32, String)>) -> Option<Value> {
    process.map(|(pid, comm)| json!({ "pid": pid, "comm": comm }))
}
