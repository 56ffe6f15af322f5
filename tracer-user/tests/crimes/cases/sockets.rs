//! Other sockets than TCP on IPv4, and descriptors that are passed on.

use crate::case::{Case, INCONCLUSIVE, OUTLIVED, clean, expect, leaks};

const UNTIL_JUDGED: &[&str] = &["--grace", "300ms", "--for", "900ms"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            options: UNTIL_JUDGED,
            more: |report| {
                let wanted = serde_json::json!({"netlink": 1, "unix": 2});
                expect(&report["not_judged"], &wanted, "what no rule judges")
            },
            ..clean("unjudged_families")
        },
        leaks("annotated_unix_socket", OUTLIVED),
        leaks("udp_kept_after_end", OUTLIVED),
        clean("mptcp"),
        leaks("mptcp_kept", OUTLIVED),
        clean("mptcp_listener_with_plain_clients"),
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
        Case {
            status: INCONCLUSIVE,
            options: &["--grace", "300ms", "--for", "900ms"],
            agrees: false,
            ..clean("io_uring_kept")
        },
        clean("io_uring_released"),
        Case {
            options: UNTIL_JUDGED,
            ..clean("corner_mptcp_accepted_and_open")
        },
        Case {
            options: UNTIL_JUDGED,
            ..clean("corner_mptcp_accepted_unseen_and_open")
        },
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
    ]
}
