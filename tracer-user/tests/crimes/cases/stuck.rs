//! Bytes that wait, and connects, with and without progress.

use crate::case::{Case, clean, leaks};

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
        Case {
            options: SHORT,
            ..clean("stuck_not_but_slow")
        },
    ]
}

const fn stuck(name: &'static str, denied: &'static [(&'static str, usize)]) -> Case {
    Case {
        options: SHORT,
        ..leaks(name, denied)
    }
}
