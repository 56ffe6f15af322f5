//! The corpus: every program that is tried, and what must be found of it.

use serde_json::Value;

use crate::fixtures::labels;

use crate::case::{BASE, Case, Holders, INCONCLUSIVE, LEAK, clean, expect, findings, leaks, only};

pub(crate) fn all() -> Vec<Case> {
    const OUTLIVED: &[(&str, usize)] = &[("outlived-request", 1)];
    const LABELLED: &[(&str, usize)] = &[("outlived-request", labels::LENGTHS.len())];
    vec![
        clean("closes_in_time"),
        leaks("fd_kept_after_end", OUTLIVED),
        leaks("kept_by_a_dup", OUTLIVED),
        leaks("held_twice", OUTLIVED),
        leaks("kept_by_a_child", OUTLIVED),
        Case {
            more: |report| {
                let found = only(report)?;
                expect(&found["released_ns"].is_u64(), &true, "it was released")?;
                expect(
                    &found["holders"].as_array().map(Vec::len),
                    &Some(1),
                    "holders then",
                )
            },
            ..leaks("released_after_grace", OUTLIVED)
        },
        Case {
            more: |report| {
                let found = only(report)?;
                expect(&found["tcp_state"], &"CLOSE_WAIT".into(), "state")?;
                expect(&found["owner"], &Value::Null, "owner")?;
                expect(&found["bytes_in"], &5.into(), "bytes in")?;
                expect(&found["unread_bytes"], &5.into(), "unread")?;
                expect(&found["bytes_out"], &3.into(), "bytes out")
            },
            ..leaks("close_wait_left_open", &[("peer-closed", 1)])
        },
        Case {
            more: |report| {
                let found = only(report)?;
                expect(&found["tcp_state"], &"CLOSE".into(), "state")?;
                expect(&found["unsent_bytes"], &Value::Null, "unsent")
            },
            ..leaks("refused_connect_left_open", &[("dead-socket", 1)])
        },
        Case {
            more: |report| {
                let found = only(report)?;
                expect(&found["bytes_out"], &4.into(), "bytes out")?;
                expect(&found["unsent_bytes"], &Value::Null, "unsent")
            },
            ..leaks("corner_disconnected", &[("dead-socket", 1)])
        },
        leaks("reset_left_open", &[("dead-socket", 1)]),
        clean("owner_bound_again"),
        leaks("owner_bound_again_then_kept", OUTLIVED),
        Case {
            more: |report| expect(&only(report)?["released_ns"].is_u64(), &true, "released"),
            ..leaks("owner_bound_again_too_late", OUTLIVED)
        },
        leaks("owner_session_remnant", &[("session-remnant", 1)]),
        leaks("owner_unowned", &[("unowned", 1)]),
        leaks("owner_unowned_kept_by_a_child", &[("unowned", 1)]),
        Case {
            reader_stops: true,
            holders: Holders::AsPrintedIfSeen,
            ..leaks(
                "owner_unowned_kept_by_a_child with a stopped reader",
                &[("unowned", 1)],
            )
        },
        leaks("owner_bound_to_an_ended_owner", OUTLIVED),
        clean("owner_bound_to_an_ended_owner_and_released"),
        clean("owner_pooled_after_end"),
        leaks("owner_end_told_by_another_process", OUTLIVED),
        leaks("annotated_unix_socket", OUTLIVED),
        clean("never_connected"),
        leaks("owner_two_owners_kept", &[("outlived-request", 2)]),
        leaks("owner_whole_session_kept", &[("session-remnant", 3)]),
        leaks("udp_kept_after_end", OUTLIVED),
        clean("owner_ended_twice"),
        clean("replaced_by_dup2"),
        clean("half_closed_and_finished"),
        leaks("accepted_without_asking_and_kept", &[("peer-closed", 1)]),
        clean("mptcp"),
        leaks("mptcp_kept", OUTLIVED),
        clean("mptcp_listener_with_plain_clients"),
        clean("connected_again"),
        Case {
            // One taken for another that was there before would be nobody's child.
            more: |report| expect(&report["sockets"]["connected"], &1100.into(), "connected"),
            ..leaks(
                "corner_after_forgotten_backlogs",
                &[("outlived-request", 10)],
            )
        },
        leaks("corner_begun_anew_too_late", BEGUN_ANEW),
        Case {
            reader_stops: true,
            holders: Holders::AsPrintedIfSeen,
            ..leaks(
                "corner_begun_anew_too_late with a stopped reader",
                BEGUN_ANEW,
            )
        },
        leaks("passed_and_kept", OUTLIVED),
        Case {
            status: INCONCLUSIVE,
            options: &["--grace", "300ms", "--for", "900ms"],
            agrees: false,
            more: |report| {
                let reasons = report["reasons"].to_string();
                expect(&reasons.contains("no file descriptor"), &true, "the reason")
            },
            ..clean("passed_in_flight")
        },
        leaks("inherited_by_exec", OUTLIVED),
        Case {
            status: INCONCLUSIVE,
            options: &["--grace", "300ms", "--for", "900ms"],
            agrees: false,
            ..clean("io_uring_kept")
        },
        Case {
            inherits: true,
            status: INCONCLUSIVE,
            more: |report| {
                let reasons = report["reasons"].to_string();
                expect(&reasons.contains("inherited fd 0"), &true, "the reason")
            },
            ..clean("has_one_from_outside")
        },
        clean("io_uring_released"),
        clean("killed"),
        Case {
            options: &["--grace", "300ms", "--idle", "400ms", "--deny", "idle"],
            ..leaks("idle", &[("idle", 2)])
        },
        Case {
            options: &["--grace", "300ms", "--idle", "400ms", "--deny", "idle"],
            ..clean("busy")
        },
        Case {
            more: |report| {
                let label = only(report)?["owner"]["label"].as_str();
                expect(&label, &Some("\u{fffd}]52;c;evil\u{fffd}"), "label")
            },
            ..leaks("label_hostile", OUTLIVED)
        },
        Case {
            more: labelled,
            ..leaks("label_kept", LABELLED)
        },
        Case {
            more: labelled,
            ..leaks("label_released_late", LABELLED)
        },
        Case {
            more: labelled,
            ..leaks("label_bound_anew_too_late", LABELLED)
        },
        Case {
            needs: &["curl"],
            ..clean("foreign_curl")
        },
        Case {
            needs: &["nginx"],
            ..clean("foreign_nginx")
        },
        Case {
            needs: &["python3"],
            ..clean("foreign_python")
        },
        Case {
            needs: &["python3"],
            ..leaks("foreign_python_leaking", &[("peer-closed", 3)])
        },
        Case {
            needs: &["go"],
            ..clean("foreign_go")
        },
        Case {
            needs: &["go"],
            ..leaks("foreign_go_leaking", &[("peer-closed", 3)])
        },
        piles_up("pile_one_for_each_request", &[]),
        piles_up("pile_python_leaking", &["python3"]),
        piles_up("pile_go_leaking", &["go"]),
        keeps_quiet("pile_pool_reused", &[]),
        keeps_quiet("pile_burst_drained", &[]),
        keeps_quiet("pile_all_in_use", &[]),
        keeps_quiet("pile_python", &["python3"]),
        keeps_quiet("pile_go", &["go"]),
        Case {
            more: |report| is_noted(report, "has not grown"),
            ..keeps_quiet("pile_subscriptions", &[])
        },
        Case {
            more: |report| is_noted(report, "has not grown"),
            ..keeps_quiet("pile_housekeeper", &[])
        },
        Case {
            more: |report| is_noted(report, "too young"),
            options: &["--grace", "300ms"],
            ..keeps_quiet("pile_young", &[])
        },
        Case {
            needs: &["unshare", "ip"],
            ..leaks("namespace_pid_kept", OUTLIVED)
        },
        Case {
            needs: &["unshare", "ip"],
            ..leaks("namespace_net_kept", OUTLIVED)
        },
        Case {
            needs: &["unshare", "ip"],
            ..clean("namespace_net_released")
        },
        Case {
            needs: &["unshare"],
            started_by: &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
            ..leaks("fd_kept_after_end in a namespace with its tracer", OUTLIVED)
        },
        Case {
            options: WITH_STACKS,
            more: |report| stack_names(only(report)?, "close_wait_left_open"),
            ..leaks("close_wait_left_open with stacks", &[("peer-closed", 1)])
        },
        Case {
            options: WITH_STACKS,
            more: |report| stack_names(only(report)?, "kept_where_it_was_accepted"),
            ..leaks("kept_where_it_was_accepted with stacks", OUTLIVED)
        },
        leaks("corner_accepted_late_without_asking", &[("peer-closed", 1)]),
        clean("corner_pooled_peer_done"),
        clean("corner_connected_to_itself"),
        clean("corner_listening_again"),
        leaks("corner_no_route_kept", &[("dead-socket", 1)]),
        clean("corner_no_route_then_connected"),
        Case {
            options: UNTIL_JUDGED,
            ..clean("corner_mptcp_accepted_and_open")
        },
        Case {
            options: UNTIL_JUDGED,
            ..clean("corner_mptcp_accepted_unseen_and_open")
        },
        Case {
            more: closed_with_exact_bytes,
            ..leaks("corner_close_wait_left_in_time", &[("dead-socket", 1)])
        },
        Case {
            more: found_in_close_wait,
            ..leaks("corner_close_wait_left_too_late", &[("peer-closed", 1)])
        },
        Case {
            more: closed_with_exact_bytes,
            ..leaks("corner_closed_by_both", &[("dead-socket", 1)])
        },
        Case {
            more: closed_with_exact_bytes,
            ..leaks("corner_reset_after_own_finish", &[("dead-socket", 1)])
        },
        Case {
            more: |report| expect(&only(report)?["holders_unlisted"], &0.into(), "unlisted"),
            ..leaks("corner_held_by_many", OUTLIVED)
        },
        clean("process_becomes_another_program"),
        clean("process_number_used_again"),
        Case {
            status: INCONCLUSIVE,
            more: |report| {
                let reasons = report["reasons"].to_string();
                let told = "1 processes left the audited cgroup";
                expect(
                    &(reasons.contains(told) && reasons.contains("crimes")),
                    &true,
                    "the reason",
                )
            },
            ..clean("process_leaves")
        },
        clean("process_goes_below"),
        Case {
            started_by: WITHIN_ANOTHER,
            ..clean("closes_in_time within another tracer")
        },
        Case {
            started_by: WITHIN_ANOTHER,
            ..leaks("fd_kept_after_end within another tracer", OUTLIVED)
        },
        clean("accepted_late"),
        clean("never_accepted"),
        clean("udp"),
        clean("ipv6"),
        Case {
            more: |report| {
                expect(
                    &report["completeness"]["malformed_annotations"],
                    &9.into(),
                    "malformed",
                )
            },
            ..clean("malformed_annotations")
        },
        Case {
            more: |report| {
                let warned = &report["findings"][0];
                expect(&warned["kind"], &"open-at-exit".into(), "kind")?;
                expect(&warned["level"], &"warn".into(), "level")
            },
            ..clean("open_at_exit")
        },
        Case {
            options: &["--grace", "300ms", "--deny", "open-at-exit"],
            holders: Holders::Nobody,
            status: LEAK,
            denied: &[("open-at-exit", 1)],
            name: "open_at_exit denied",
            ..BASE
        },
        Case {
            options: &[
                "--grace",
                "300ms",
                "--deny",
                "peer-closed",
                "--allow",
                "peer-closed",
            ],
            name: "close_wait_left_open allowed",
            ..BASE
        },
        Case {
            options: &["--grace", "300ms", "--for", "600ms"],
            more: |report| expect(&report["target"]["exit_status"], &Value::Null, "status"),
            ..leaks("judged_while_running", OUTLIVED)
        },
        leaks("left_behind", OUTLIVED),
        Case {
            status: 7,
            more: |report| expect(&report["target"]["exit_status"], &7.into(), "status"),
            ..clean("own_status")
        },
        Case {
            options: PATIENT,
            more: many,
            ..clean("many_connections")
        },
        Case {
            options: PATIENT,
            more: many,
            ..leaks("many_connections_one_leaked", OUTLIVED)
        },
        Case {
            options: FEW_PLACES,
            more: many_share_few_places,
            ..clean("many_connections with few places")
        },
        Case {
            options: PATIENT,
            ..clean("many_connections_looked_at")
        },
        Case {
            options: PATIENT,
            ..leaks("planted", &[("outlived-request", 25)])
        },
        Case {
            options: TINY_RING,
            more: many_and_lost,
            ..clean("many_connections with a tiny ring")
        },
        Case {
            options: TINY_RING,
            more: many_and_lost,
            ..leaks("many_connections_one_leaked with a tiny ring", OUTLIVED)
        },
        Case {
            options: SMALL_RING,
            reader_stops: true,
            more: many_and_lost,
            ..clean("many_connections with a stopped reader")
        },
        Case {
            options: SMALL_RING,
            reader_stops: true,
            holders: Holders::AsPrintedIfSeen,
            more: many_and_lost,
            ..leaks(
                "many_connections_one_leaked with a stopped reader",
                OUTLIVED,
            )
        },
    ]
}

const BEGUN_ANEW: &[(&str, usize)] = &[("dead-socket", 2), ("peer-closed", 1)];
const UNTIL_JUDGED: &[&str] = &["--grace", "300ms", "--for", "900ms"];
const WITHIN_ANOTHER: &[&str] = &[
    env!("CARGO_BIN_EXE_tracer"),
    "run",
    "--grace",
    "300ms",
    "--",
];

/// Three bytes went out and five came in, whatever SYNs and FINs went along.
fn closed_with_exact_bytes(report: &Value) -> Result<(), String> {
    has_state_and_exact_bytes(report, "CLOSE")
}

/// A finding has the state in which its rule was broken, whatever TCP did later.
fn found_in_close_wait(report: &Value) -> Result<(), String> {
    has_state_and_exact_bytes(report, "CLOSE_WAIT")
}

fn has_state_and_exact_bytes(report: &Value, state: &str) -> Result<(), String> {
    let found = only(report)?;
    expect(&found["tcp_state"], &state.into(), "state")?;
    expect(&found["bytes_in"], &5.into(), "bytes in")?;
    expect(&found["bytes_out"], &3.into(), "bytes out")
}

const WITH_STACKS: &[&str] = &["--grace", "300ms", "--stacks"];

/// Each finding has the label that its socket was bound with, whole.
fn labelled(report: &Value) -> Result<(), String> {
    let findings = report["findings"].as_array().ok_or("no findings")?;
    let label = |found: &Value| {
        found["owner"]["label"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let mut found: Vec<String> = findings.iter().map(label).collect();
    found.sort_by_key(String::len);
    expect(&found, &labels::LENGTHS.map(labels::of).to_vec(), "labels")
}

/// The stack that opened the socket leads through this function of the test.
fn stack_names(found: &Value, function: &str) -> Result<(), String> {
    let stack = found["stack"].as_array().ok_or("no stack")?;
    let named = stack.iter().any(|call| {
        let name = call["function"].as_str().unwrap_or_default();
        name.contains(function)
            && call["source"]
                .as_str()
                .is_some_and(|at| at.contains("fixtures.rs:"))
    });
    expect(&named, &true, function)
}

/// Where thousands of connections are made, a thread may wait for a processor longer than the other cases' grace.
const PATIENT: &[&str] = &["--grace", "1s"];
const FEW_PLACES: &[&str] = &["--grace", "1s", "--places", "64"];
const TINY_RING: &[&str] = &["--grace", "1s", "--ring", "4"];
const SMALL_RING: &[&str] = &["--grace", "1s", "--ring", "64"];

/// The kernel's counts are exact, what only records tell is unknown.
fn many_and_lost(report: &Value) -> Result<(), String> {
    many_in_the_kernel(report)?;
    expect(&report["owners"]["streams_bound"], &Value::Null, "bound")?;
    expect(&report["outlive_ns"]["count"], &Value::Null, "outlive")?;
    let lost = report["completeness"]["lost_events"].as_u64();
    expect(&(lost > Some(0)), &true, "records were lost")
}

fn many(report: &Value) -> Result<(), String> {
    many_in_the_kernel(report)?;
    expect(&report["completeness"]["lost_events"], &0.into(), "lost")?;
    expect(&report["owners"]["streams_bound"], &20_000.into(), "bound")?;
    expect(&report["owners"]["streams_ended"], &20_000.into(), "ended")
}

/// 20,000 connections have 40,000 ends; there are eight listeners.
fn many_in_the_kernel(report: &Value) -> Result<(), String> {
    expect(&report["sockets"]["created"], &20_008.into(), "created")?;
    expect(&report["sockets"]["accepted"], &20_000.into(), "accepted")?;
    expect(&report["sockets"]["connected"], &20_000.into(), "connected")
}

/// About half find a place. Were none given back, only those would that come to the address of a former tenant, a tenth.
fn many_share_few_places(report: &Value) -> Result<(), String> {
    many(report)?;
    let without = report["completeness"]["without_place"].as_u64();
    expect(&(without < Some(30_000)), &true, "places are given back")
}

const SHORT_PILES: &[&str] = &["--grace", "300ms", "--pile-up-after", "1s"];

const fn piles_up(name: &'static str, needs: &'static [&'static str]) -> Case {
    Case {
        holders: Holders::OneEach,
        options: SHORT_PILES,
        needs,
        more: |report| {
            let state = findings(report)
                .iter()
                .filter(|found| found["level"] == "deny");
            let all = state.map(|found| found["tcp_state"].as_str());
            let open = all.filter(|state| *state == Some("ESTABLISHED"));
            expect(&(open.count() >= 8), &true, "they were seen open")?;
            is_one_group(report)
        },
        ..leaks(name, &[("pile-up", 8)])
    }
}

const fn keeps_quiet(name: &'static str, needs: &'static [&'static str]) -> Case {
    Case {
        options: SHORT_PILES,
        needs,
        more: |report| expect(&report["notes"], &serde_json::json!([]), "notes"),
        ..clean(name)
    }
}

/// One cause is one group, which comes first and says what to do.
fn is_one_group(report: &Value) -> Result<(), String> {
    let groups = report["groups"].as_array().map_or(&[][..], Vec::as_slice);
    let denied: Vec<&Value> = groups.iter().filter(|it| it["level"] == "deny").collect();
    let [group] = denied.as_slice() else {
        return Err(format!(
            "{} denied groups where one was expected",
            denied.len()
        ));
    };
    let found = findings(report).iter().filter(|it| it["level"] == "deny");
    expect(
        &group["sockets"],
        &found.count().into(),
        "sockets of the group",
    )?;
    expect(&groups.first(), &Some(*group), "the first group")?;
    let text = |key: &str| group[key].as_str().unwrap_or_default().to_owned();
    expect(&text("target").starts_with("127.0.0.1:"), &true, "target")?;
    expect(&text("advice").contains("one client"), &true, "advice")?;
    expect(&group["example"]["kind"], &"pile-up".into(), "example")
}

fn is_noted(report: &Value, words: &str) -> Result<(), String> {
    let notes = report["notes"].as_array().map_or(&[][..], Vec::as_slice);
    let is_one = |note: &Value| note.as_str().is_some_and(|note| note.contains(words));
    expect(
        &notes.iter().filter(|note| is_one(note)).count(),
        &1,
        "such notes",
    )
}
