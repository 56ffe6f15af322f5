//! Sockets that connect or listen more than once, and connects that fail.

use serde_json::Value;

use crate::case::{Case, Holders, clean, expect, leaks, only};

const BEGUN_ANEW: &[(&str, usize)] = &[("dead-socket", 2), ("peer-closed", 1)];

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            more: |report| {
                let found = only(report)?;
                expect(&found["bytes_out"], &4.into(), "bytes out")?;
                expect(&found["unsent_bytes"], &Value::Null, "unsent")
            },
            ..leaks("corner_disconnected", &[("dead-socket", 1)])
        },
        clean("connected_again"),
        Case {
            // A socket mistaken for a previous one would be missing here.
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
        clean("corner_connected_to_itself"),
        clean("corner_listening_again"),
        leaks("corner_no_route_kept", &[("dead-socket", 1)]),
        clean("corner_no_route_then_connected"),
    ]
}
