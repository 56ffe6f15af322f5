//! Bytes that wait, and connects, with and without progress.

use crate::case::{Case, Holders, clean, leaks};

const SHORT: &[&str] = &[
    "--grace",
    "300ms",
    "--stuck-after",
    "800ms",
    "--deny",
    "stuck",
];

pub(super) fn cases() -> Vec<Case> {
    vec![
        stuck("stuck_write", &[("stuck", 2)]),
        stuck("stuck_read", &[("stuck", 1)]),
        stuck("stuck_connect", &[("stuck", 3)]),
        // The client's bytes wait to be sent, and the server's to be read.
        stuck_upload("stuck_python_upload_stuck", &["python3"]),
        stuck_upload("stuck_go_upload_stuck", &["go"]),
        stuck_upload("stuck_node_upload_stuck", &["node"]),
        slow("stuck_not_but_slow", &[]),
        slow("stuck_python_upload_slow", &["python3"]),
        slow("stuck_go_upload_slow", &["go"]),
        slow("stuck_node_upload_slow", &["node"]),
    ]
}

const fn stuck(name: &'static str, denied: &'static [(&'static str, usize)]) -> Case {
    Case {
        options: SHORT,
        ..leaks(name, denied)
    }
}

const fn stuck_upload(name: &'static str, needs: &'static [&'static str]) -> Case {
    Case {
        holders: Holders::OneEach,
        needs,
        ..stuck(name, &[("stuck", 2)])
    }
}

const fn slow(name: &'static str, needs: &'static [&'static str]) -> Case {
    Case {
        options: SHORT,
        needs,
        ..clean(name)
    }
}
