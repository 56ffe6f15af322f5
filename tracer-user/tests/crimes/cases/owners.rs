//! Owners and labels.

use serde_json::Value;

use crate::case::{Case, Holders, OUTLIVED, clean, expect, leaks, only};
use crate::fixtures::labels;

const LABELLED: &[(&str, usize)] = &[("outlived-request", labels::LENGTHS.len())];

pub(super) fn cases() -> Vec<Case> {
    vec![
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
        leaks("owner_two_owners_kept", &[("outlived-request", 2)]),
        leaks("owner_whole_session_kept", &[("session-remnant", 3)]),
        clean("owner_ended_twice"),
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
    ]
}

/// Each finding has the whole label that its socket was bound with.
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
