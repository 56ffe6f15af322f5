//! Stacks, and tracers that run in a namespace or under another tracer.

use serde_json::Value;

use crate::case::{Case, OUTLIVED, clean, expect, leaks, only};

const WITHIN_ANOTHER: &[&str] = &[
    env!("CARGO_BIN_EXE_tracer"),
    "run",
    "--grace",
    "300ms",
    "--",
];

const WITH_STACKS: &[&str] = &["--grace", "300ms", "--stacks"];

pub(super) fn cases() -> Vec<Case> {
    vec![
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
        Case {
            started_by: WITHIN_ANOTHER,
            ..clean("closes_in_time within another tracer")
        },
        Case {
            started_by: WITHIN_ANOTHER,
            ..leaks("fd_kept_after_end within another tracer", OUTLIVED)
        },
    ]
}

/// The stack that opened the socket contains this function of the test.
fn stack_names(found: &Value, function: &str) -> Result<(), String> {
    let stack = found["stack"].as_array().ok_or("no stack")?;
    let named = stack.iter().any(|call| {
        let name = call["function"].as_str().unwrap_or_default();
        name.contains(function)
            && call["source"]
                .as_str()
                .is_some_and(|at| at.contains("crimes/fixtures/"))
    });
    expect(&named, &true, function)
}
