//! Descriptors, their holders, and how the command ends.

use serde_json::Value;

use crate::case::{BASE, Case, Holders, INCONCLUSIVE, LEAK, OUTLIVED, clean, expect, leaks, only};

pub(super) fn cases() -> Vec<Case> {
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
        clean("replaced_by_dup2"),
        leaks("inherited_by_exec", OUTLIVED),
        Case {
            inherits: true,
            status: INCONCLUSIVE,
            more: |report| {
                let reasons = report["reasons"].to_string();
                let says = |what| reasons.contains(what);
                let is_told =
                    says("inherited fd 0") && says("start what opens it inside the audit");
                expect(&is_told, &true, "the reason")
            },
            ..clean("has_one_from_outside")
        },
        clean("killed"),
        Case {
            more: |report| expect(&only(report)?["holders_unlisted"], &0.into(), "unlisted"),
            ..leaks("corner_held_by_many", OUTLIVED)
        },
        Case {
            more: |report| {
                let warned = &report["findings"][0];
                expect(&warned["kind"], &"open-at-exit".into(), "kind")?;
                expect(&warned["level"], &"warn".into(), "level")?;
                let group = &report["groups"][0];
                expect(&group["sockets"], &1.into(), "sockets of the group")?;
                expect(&group["target"], &Value::Null, "target of the group")
            },
            ..clean("open_at_exit")
        },
        Case {
            options: &["--grace", "300ms", "--deny", "open-at-exit"],
            ..clean("listens_until_exit")
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
    ]
}
