//! States of TCP.

use serde_json::Value;

use crate::case::{BASE, Case, clean, expect, leaks, only};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            more: |report| {
                let found = only(report)?;
                expect(&found["tcp_state"], &"CLOSE_WAIT".into(), "state")?;
                let own = std::env::current_exe().map_err(|error| error.to_string())?;
                let executable = &report["groups"][0]["executable"];
                expect(executable, &own.to_str().into(), "executable")?;
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
        leaks("reset_left_open", &[("dead-socket", 1)]),
        clean("never_connected"),
        clean("half_closed_and_finished"),
        clean("half_closed_and_served"),
        leaks("half_closed_and_kept", &[("peer-closed", 1)]),
        clean("half_closed_and_slow_to_read"),
        leaks("accepted_without_asking_and_kept", &[("peer-closed", 1)]),
        Case {
            options: &["--grace", "300ms", "--idle", "400ms", "--deny", "idle"],
            ..leaks("idle", &[("idle", 2)])
        },
        Case {
            options: &["--grace", "300ms", "--idle", "400ms", "--deny", "idle"],
            ..clean("busy")
        },
        leaks("corner_accepted_late_without_asking", &[("peer-closed", 1)]),
        clean("corner_pooled_peer_done"),
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
        clean("accepted_late"),
        clean("never_accepted"),
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
    ]
}

/// Three bytes were sent and five received; SYNs and FINs do not count.
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
