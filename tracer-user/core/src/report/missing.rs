//! What the evidence lacks: a clean verdict needs all of it.

use tracer_abi::counter::Counter;

use super::audit_log::AuditLog;
use crate::ledger::{Ledger, Walk};

/// How many of the processes that left the audited cgroup are named.
const LEFT_NAMED: usize = 8;

/// What to do about a listener from outside, as of socket activation: what it accepts belongs to
/// the cgroup that it was made in.
const START_INSIDE: &str = "start what opens it inside the audit too (as in `tracer run -- \
     systemd-socket-activate ...`), or let the command open it itself";

/// Returns what is missing, one whole sentence each.
pub(super) fn missing(audit_log: &AuditLog, ledger: &Ledger) -> Vec<String> {
    let mut missing = audit_log.failures.clone();
    missing.extend(detached(audit_log));
    missing.extend(inherited(audit_log));
    missing.extend(cut_short(audit_log));
    missing.extend(left(audit_log, ledger));
    missing.extend(kernel_failures(audit_log, ledger));
    if let Some(walk) = &audit_log.walk {
        missing.extend(disagreements(audit_log, walk));
    }
    missing
}

fn cut_short(audit_log: &AuditLog) -> Option<String> {
    let waiting = audit_log.walk.as_ref().map_or(0, |walk| walk.waiting);
    (audit_log.is_cut_short && waiting > 0).then(|| {
        format!(
            "a second signal cut the grace short while {waiting} {} to be released",
            if waiting == 1 {
                "socket was"
            } else {
                "sockets were"
            }
        )
    })
}

fn detached(audit_log: &AuditLog) -> impl Iterator<Item = String> {
    let links = audit_log.attachments.iter().filter(|link| !link.attached);
    links.map(|link| {
        format!(
            "the eBPF program {} was detached during the audit (link {})",
            link.program, link.link_id
        )
    })
}

fn inherited(audit_log: &AuditLog) -> impl Iterator<Item = String> {
    audit_log.inherited.iter().map(|foreign| {
        format!(
            "the command inherited fd {}, an internet socket from outside the audit with the \
             local port {}: what happens on it is not seen; {START_INSIDE}",
            foreign.holder.fd, foreign.local_port
        )
    })
}

fn left(audit_log: &AuditLog, ledger: &Ledger) -> Option<String> {
    let count = audit_log.counters.of(Counter::Left);
    if count == 0 {
        return None;
    }
    let named = ledger.left().iter().take(LEFT_NAMED);
    let names: Vec<String> = named.map(|(pid, comm)| format!("{comm} ({pid})")).collect();
    let names = if names.is_empty() {
        "their names were lost".to_owned()
    } else {
        names.join(", ")
    };
    Some(format!(
        "{count} processes left the audited cgroup, so that the sockets they opened from then on \
         are not seen: {names}"
    ))
}

/// Says how many of something were lost; `None` for none.
fn lacks(count: u64, what: &str) -> Option<String> {
    (count > 0).then(|| format!("{count} {what}"))
}

/// What the kernel side could not do, or could not report.
fn kernel_failures(audit_log: &AuditLog, ledger: &Ledger) -> impl Iterator<Item = String> {
    let of = |counter| audit_log.counters.of(counter);
    let late_unknown = of(Counter::Late).saturating_sub(ledger.counts().late);
    [
        lacks(
            of(Counter::StorageFailures),
            "sockets could not be followed: the kernel had no memory for their storage",
        ),
        lacks(
            of(Counter::EndFailures),
            "ENDs could not be remembered: the kernel's table was full",
        ),
        lacks(
            of(Counter::AnnotatorFailures),
            "annotating processes could not be remembered: the kernel's table was full",
        ),
        lacks(
            of(Counter::MemberFailures),
            "processes could not be followed: the kernel's table was full",
        ),
        lacks(
            audit_log.missed_runs(),
            "runs of the eBPF programs were skipped by the kernel",
        ),
        lacks(
            audit_log.undecodable,
            "records of the kernel side could not be decoded: it is of another build",
        ),
        lacks(
            late_unknown,
            "sockets were released or reused too late by the kernel's count, but the records that \
             name them were lost",
        ),
    ]
    .into_iter()
    .flatten()
}

/// Where the last walk, the ledger and the kernel's counters disagree.
fn disagreements(audit_log: &AuditLog, walk: &Walk) -> impl Iterator<Item = String> {
    let must_be_open = audit_log.counters.open();
    let foreign = walk.foreign_sockets.first();
    let foreign = foreign.filter(|_| audit_log.inherited.is_empty());
    [
        lacks(
            walk.only_in_ledger,
            "sockets have no file descriptor that the witness can see (passed over a Unix socket \
             and not received, or held by io_uring)",
        ),
        lacks(
            walk.only_in_kernel,
            "sockets were met by the witness and announced by no record",
        ),
        foreign.map(|first| {
            format!(
                "{} file descriptors of the command are internet sockets from outside the audit, \
                 so that what happens on them is not seen: the first is fd {} of process {}, local \
                 port {}; {START_INSIDE}",
                walk.foreign_sockets.len(),
                first.holder.fd,
                first.holder.pid,
                first.local_port
            )
        }),
        (!audit_log.counters_agree(walk)).then(|| {
            format!(
                "the kernel's counters say that {must_be_open} sockets are open, the witness met \
                 {}",
                walk.open
            )
        }),
    ]
    .into_iter()
    .flatten()
}
