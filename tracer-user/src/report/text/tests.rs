//! The whole report on one screen.

use std::net::SocketAddr;
use std::sync::Arc;

use tracer_abi::annotation::{Owner, Role};
use tracer_abi::facts::{AF_INET6, fact};
use tracer_abi::record::{Brief, Head, RELEASED, ReleaseEvent};
use tracer_core::event::Event;
use tracer_core::ledger::{Ledger, Timeouts, Walk};
use tracer_core::report::{AuditLog, Call, group_by_cause};
use tracer_core::verdict::{Finding, Holder, Kind, Levels, OwnerInfo, ProcessName, Tuple};

use super::screen::{COLUMNS, columns};
use super::*;

const MANY: u64 = 123_456_789_012;

fn ledger() -> Ledger {
    let timeouts = Timeouts::NEVER;
    Ledger::new(timeouts, Levels::default())
}

/// A ledger in which connections to `targets` targets were released.
fn ledger_with(targets: u16) -> Ledger {
    let mut ledger = ledger();
    for n in 0..targets {
        ledger.apply(&Event::Released(ReleaseEvent {
            head: Head {
                kind: RELEASED,
                flags: 0,
                at_ns: MANY,
            },
            brief: Brief {
                id: n.into(),
                born_ns: 1,
                flags: fact::DIALED,
                family: AF_INET6,
                protocol: 6,
            },
            over_ns: 1,
            remote: [0xfd; 16],
            remote_port: u16::MAX - n,
            local_port: 0,
            reserved: 0,
        }));
    }
    ledger
}

/// A finding of a program of its own, whose every part is as long as can be.
fn finding(id: u64, kind: Kind) -> Finding {
    let address = |port| SocketAddr::from(([0xfd01, 2, 3, 4, 5, 6, 7, 0xfd08], port));
    let name = ProcessName {
        comm: "ThreadPoolForeg".to_owned(),
        executable: Some(format!("/opt/{}/{id}", "a long path/".repeat(300))),
    };
    let name = Some(Arc::new(name));
    Finding {
        kind,
        id,
        cookie: Some(id),
        tuple: Some(Tuple {
            local: address(65001),
            remote: address(65002),
        }),
        accepted: true,
        tcp_state: Some(8),
        owner: Some(OwnerInfo {
            owner: Owner {
                session: u64::MAX,
                stream: u64::MAX,
            },
            role: Some(Role::Listener),
            label: Some("l".repeat(64)),
        }),
        holders: (0..4096)
            .map(|fd| Holder {
                pid: u32::MAX - u32::try_from(id).unwrap(),
                fd,
                name: name.clone(),
            })
            .collect(),
        holders_unlisted: MANY,
        opener: Some((u32::MAX, "ThreadPoolForeg".to_owned())),
        born_ns: 1,
        is_adopted: false,
        ended_ns: Some(2),
        since_ns: 3,
        released_ns: Some(MANY * 1000),
        releaser: Some((u32::MAX, "ThreadPoolForeg".to_owned())),
        seen_ns: 4,
        bytes_in: Some(MANY),
        bytes_out: Some(MANY),
        unread: Some(u32::MAX),
        unsent: Some(u32::MAX),
    }
}

fn audit_log() -> AuditLog {
    let mut log = AuditLog {
        walk: Some(Walk::default()),
        ..AuditLog::default()
    };
    log.window.end_ns = MANY * 1000;
    log
}

fn plain(report: &Report<'_>) -> Vec<String> {
    let text = anstream::adapter::strip_str(&render(report)).to_string();
    text.lines().map(str::to_owned).collect()
}

fn has(lines: &[String], text: &str) -> bool {
    lines.iter().any(|line| line.contains(text))
}

fn assert_is_a_screen(lines: &[String]) {
    let text = lines.join("\n");
    assert!(lines.len() <= LINES, "{} lines:\n{text}", lines.len());
    for line in lines {
        assert!(columns(line) <= COLUMNS, "{line}");
    }
}

#[test]
fn the_worst_report_is_a_screen() {
    let mut log = audit_log();
    for counter in [Counter::Created, Counter::Released, Counter::RingFailures] {
        log.counters.set(counter as u32, MANY);
    }
    let walk = log.walk.as_mut().unwrap();
    walk.open = MANY;
    walk.unjudged = [
        "alg",
        "bluetooth",
        "can",
        "mptcp",
        "netlink",
        "packet",
        "raw",
        "unix",
    ]
    .into_iter()
    .map(|sort| (sort, MANY))
    .collect();
    let call = Call {
        function: Some("f".repeat(1000)),
        module: Some("/m".repeat(1000)),
        offset: u64::MAX,
        source: None,
    };
    let kinds = [Kind::PeerClosed, Kind::Idle, Kind::OutlivedRequest];
    let findings: Vec<Finding> = (0..60)
        .map(|id| finding(id, kinds[usize::try_from(id % 3).unwrap()]))
        .collect();
    let stack: Arc<[Call]> = vec![call; 64].into();
    log.stacks = findings.iter().map(|it| (it.id, stack.clone())).collect();
    let ledger = ledger_with(4000);
    let findings: Vec<&Finding> = findings.iter().collect();
    for groups_shown in [0, 1, 2, 60] {
        for told in [0, 1, 40] {
            let sentences: Vec<String> = (0..told)
                .map(|n| format!("{n} reason {}", "word ".repeat(60)))
                .collect();
            let report = Report {
                verdict: Verdict::Inconclusive,
                reasons: sentences.clone(),
                notes: sentences,
                audit_log: &log,
                ledger: &ledger,
                findings: Vec::new(),
                groups: group_by_cause(&findings[..groups_shown], &log.stacks, &Levels::default()),
            };
            let lines = plain(&report);
            assert_is_a_screen(&lines);
            assert!(has(&lines, "[fdfd:"), "a target");
            assert!(has(&lines, "more: --json FILE"), "the other targets");
            assert!(has(&lines, "not judged: "));
            assert_eq!(has(&lines, "0 reason"), told > 0);
            assert_eq!(has(&lines, "more reasons: --json FILE"), told > 1);
            assert_eq!(has(&lines, "more notes: --json FILE"), told > 1);
            assert_eq!(has(&lines, "what to do"), groups_shown > 0);
            let lacks_groups = has(&lines, "more groups: --json FILE");
            assert!(lacks_groups || groups_shown < 60);
            assert!(!lacks_groups || groups_shown > 2 || told > 0);
        }
    }
}

#[test]
fn an_example_of_the_largest_cause_and_every_other_cause_are_shown() {
    let mut findings: Vec<Finding> = (0..3).map(|id| finding(id, Kind::Idle)).collect();
    for id in 3..9 {
        let mut finding = finding(id, Kind::PeerClosed);
        finding.holders.truncate(1);
        finding.holders[0].name = Some(Arc::new(ProcessName {
            comm: if id < 7 { "big" } else { "small" }.to_owned(),
            executable: None,
        }));
        finding.holders_unlisted = 0;
        findings.push(finding);
    }
    let (log, ledger) = (audit_log(), ledger());
    let findings: Vec<&Finding> = findings.iter().collect();
    let report = Report {
        verdict: Verdict::Leak,
        reasons: vec!["6 sockets were open longer than allowed".to_owned()],
        notes: Vec::new(),
        audit_log: &log,
        ledger: &ledger,
        findings: Vec::new(),
        groups: group_by_cause(&findings, &log.stacks, &Levels::default()),
    };
    let lines = plain(&report);
    assert_is_a_screen(&lines);
    let at = |text: &str| lines.iter().position(|line| line.contains(text));
    let (big, example) = (at("deny peer-closed  4 sockets of big"), at("held by big["));
    let (small, idle) = (
        at("deny peer-closed  2 sockets of small"),
        at("warn idle  1"),
    );
    assert!(big.is_some() && big < example && example < small && small < idle);
    assert_eq!(
        lines
            .iter()
            .filter(|it| it.starts_with("warn idle"))
            .count(),
        3
    );
    assert!(!has(&lines, "more groups"));
}

#[test]
fn a_clean_report_has_no_empty_parts() {
    let (log, ledger) = (audit_log(), ledger());
    let report = Report::new(&log, &ledger);
    let lines = plain(&report);
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert_eq!(
        lines[1],
        "note       no internet socket was opened: nothing was judged"
    );
}

#[test]
fn durations_are_readable() {
    for (ns, text) in [
        (0, "0 ns"),
        (999, "999 ns"),
        (85_400, "85 µs"),
        (1_260_000, "1.3 ms"),
        (90_000_000_000, "90.0 s"),
        (1_000_000_000_000, "17 m"),
        (259_200_000_000_000, "72.0 h"),
    ] {
        assert_eq!(duration(ns), text);
    }
}
