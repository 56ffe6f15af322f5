//! Unmodified programs, namespaces and processes.

use crate::case::{Case, INCONCLUSIVE, OUTLIVED, clean, expect, leaks};

pub(super) fn cases() -> Vec<Case> {
    vec![
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
        clean("process_becomes_another_program"),
        clean("process_number_used_again"),
        Case {
            status: INCONCLUSIVE,
            more: |report| {
                let reasons = report["reasons"].to_string();
                let reason = "1 processes left the audited cgroup";
                expect(
                    &(reasons.contains(reason) && reasons.contains("crimes")),
                    &true,
                    "the reason",
                )
            },
            ..clean("process_leaves")
        },
        clean("process_goes_below"),
    ]
}
