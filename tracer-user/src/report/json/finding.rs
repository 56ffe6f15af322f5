//! A finding in the JSON report.

use serde::Serialize;
use tracer_abi::annotation::Role;
use tracer_core::ledger::tcp_state_name;
use tracer_core::report::{AuditLog, Call};
use tracer_core::verdict::{Finding, Level, Tuple};

/// One finding.
#[derive(Serialize)]
pub(super) struct FindingRow<'a> {
    kind: &'static str,
    level: &'static str,
    cookie: Option<String>,
    tuple: Option<Addresses>,
    tcp_state: Option<&'static str>,
    owner: Option<Owner<'a>>,
    holders: Vec<Holder<'a>>,
    holders_unlisted: u64,
    opened_by: Option<Process<'a>>,
    released_by: Option<Process<'a>>,
    opened_ns: Option<u64>,
    adopted_ns: Option<u64>,
    ended_ns: Option<u64>,
    since_ns: u64,
    released_ns: Option<u64>,
    age_ms: u64,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    unread_bytes: Option<u32>,
    unsent_bytes: Option<u32>,
    stack: Option<Vec<Frame<'a>>>,
    stack_gap: Option<&'static str>,
}

/// One call of a stack.
#[derive(Serialize)]
pub(super) struct Frame<'a> {
    function: Option<&'a str>,
    module: Option<&'a str>,
    offset: u64,
    source: Option<&'a str>,
}

#[derive(Serialize)]
struct Addresses {
    local: String,
    remote: String,
}

#[derive(Serialize)]
struct Owner<'a> {
    session: String,
    stream: String,
    role: Option<&'static str>,
    label: Option<&'a str>,
}

#[derive(Serialize)]
struct Holder<'a> {
    pid: u32,
    comm: Option<&'a str>,
    fd: u32,
}

#[derive(Serialize)]
struct Process<'a> {
    pid: u32,
    comm: &'a str,
}

impl<'a> FindingRow<'a> {
    /// Returns the row of a finding, as of `end_ns` if it is open, without its stack.
    pub(super) fn of(finding: &'a Finding, level: Level, end_ns: u64) -> Self {
        let process = |process: &'a Option<(u32, String)>| {
            process
                .as_ref()
                .map(|(pid, comm)| Process { pid: *pid, comm })
        };
        let until_ns = finding.released_ns.unwrap_or(end_ns);
        Self {
            kind: finding.kind.name(),
            level: level.name(),
            cookie: finding.cookie.map(|cookie| cookie.to_string()),
            tuple: finding.tuple.map(|Tuple { local, remote }| Addresses {
                local: local.to_string(),
                remote: remote.to_string(),
            }),
            tcp_state: finding.tcp_state.map(tcp_state_name),
            owner: finding.owner.as_ref().map(|info| Owner {
                session: info.owner.session.to_string(),
                stream: info.owner.stream.to_string(),
                role: info.role.map(Role::name),
                label: info.label.as_deref(),
            }),
            holders: finding
                .holders
                .iter()
                .map(|holder| Holder {
                    pid: holder.pid,
                    comm: holder.comm(),
                    fd: holder.fd,
                })
                .collect(),
            holders_unlisted: finding.holders_unlisted,
            opened_by: process(&finding.opener),
            released_by: process(&finding.releaser),
            opened_ns: (!finding.is_adopted).then_some(finding.born_ns),
            adopted_ns: finding.is_adopted.then_some(finding.born_ns),
            ended_ns: finding.ended_ns,
            since_ns: finding.since_ns,
            released_ns: finding.released_ns,
            age_ms: until_ns.saturating_sub(finding.born_ns) / 1_000_000,
            bytes_in: finding.bytes_in,
            bytes_out: finding.bytes_out,
            unread_bytes: finding.unread,
            unsent_bytes: finding.unsent,
            stack: None,
            stack_gap: None,
        }
    }

    /// Adds the stack that opened the socket, or why there is none.
    pub(super) fn with_stack(mut self, id: u64, audit_log: &'a AuditLog) -> Self {
        let calls = audit_log.stacks.get(&id);
        self.stack = calls.map(|calls| frames(calls));
        let gap = audit_log.stack_gaps.get(&id);
        self.stack_gap = gap.map(|gap| gap.reason());
        self
    }
}

impl<'a> Frame<'a> {
    fn of(call: &'a Call) -> Self {
        Self {
            function: call.function.as_deref(),
            module: call.module.as_deref(),
            offset: call.offset,
            source: call.source.as_deref(),
        }
    }
}

/// Returns the frames of a stack.
pub(super) fn frames(calls: &[Call]) -> Vec<Frame<'_>> {
    calls.iter().map(Frame::of).collect()
}
