//! The table at the end of the story: what the program believed beside what the kernel knows,
//! without the fix and with it.

use std::fmt::Write as _;

use super::judge::{kernel, text};
use super::{Outcome, REQUESTS};
use crate::run::table::{BAD, GOOD, HEAD};

pub(super) fn render(leaking: &Outcome, right: &Outcome, api: &str) -> String {
    let mut table = format!(
        "\n{HEAD}{:<38}{:>21}{:>21}{HEAD:#}\n",
        "", "client per request", "one client"
    );
    let columns = [leaking, right].map(|outcome| counts(outcome, api));
    let names = [
        "requests".to_owned(),
        "the program's counter: added".to_owned(),
        "                       removed".to_owned(),
        format!("the kernel, to {api}: opened"),
        format!("{:>32}", "open"),
    ];
    // Writing to a String cannot fail.
    for ((name, a), b) in names.iter().zip(&columns[0]).zip(&columns[1]) {
        let [a, b] = [a, b].map(|n| n.map_or_else(|| "?".to_owned(), |n| n.to_string()));
        let _ = writeln!(table, "{name:<38}{a:>21}{b:>21}");
    }
    let _ = write!(table, "{:<38}", "verdict");
    for outcome in [leaking, right] {
        let verdict = text(&outcome.report, "verdict");
        let style = if verdict == "clean" { GOOD } else { BAD };
        let status = outcome
            .status
            .map_or_else(|| "?".to_owned(), |it| it.to_string());
        let cell = format!("{verdict} (exit {status})");
        let _ = write!(table, "{style}{cell:>21}{style:#}");
    }
    table + "\n"
}

fn counts(outcome: &Outcome, api: &str) -> [Option<u64>; 5] {
    let [opened, _, open] = kernel(&outcome.report, api);
    let counters = outcome.counters;
    let requests = u64::try_from(outcome.rounds * REQUESTS).ok();
    [
        requests,
        Some(counters.added),
        Some(counters.removed),
        opened,
        open,
    ]
}
