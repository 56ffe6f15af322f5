//! The table of targets and listeners: what was opened to each target or accepted by each listener,
//! and what is still open.

use std::cmp::Reverse;
use std::net::IpAddr;

use tracer_core::ledger::{Ledger, OTHER, Tally};
use tracer_core::report::Report;

use super::screen::more;
use super::{DIMMED, duration};

/// How many targets and listeners are shown.
const TARGETS_SHOWN: usize = 6;

/// A target or a listener, and its connections.
struct Row {
    name: String,
    released: u64,
    open: u64,
    oldest_ns: Option<u64>,
}

impl Row {
    fn new(name: String, tally: &Tally) -> Self {
        Self {
            name,
            released: tally.released(),
            open: tally.open,
            oldest_ns: tally.oldest_ns,
        }
    }
}

/// Returns the table, in at most `limit` lines.
pub(super) fn lines(report: &Report<'_>, limit: usize) -> Vec<String> {
    table(
        &rows(report.ledger),
        report.audit_log.window.end_ns,
        report.audit_log.counters.lost_records() == 0,
        limit,
    )
}

/// Returns all targets and listeners, those with most open connections first.
fn rows(ledger: &Ledger) -> Vec<Row> {
    let targets = ledger.peers().top(usize::MAX).into_iter();
    let targets =
        targets.filter_map(|(address, tally)| Some(Row::new(target_name(address)?, tally)));
    let listeners = ledger.listeners().top(usize::MAX).into_iter();
    let listeners = listeners.map(|(port, tally)| Row::new(listener_name(port), tally));
    let mut rows: Vec<Row> = targets.chain(listeners).collect();
    rows.sort_by_key(|row| Reverse((row.open, row.released)));
    rows
}

/// Returns the rows that have connections open, or the busiest if none has. `rows` are all, those
/// with most open connections first; `is_exact` if no record of a release was lost.
fn table(rows: &[Row], end_ns: u64, is_exact: bool, limit: usize) -> Vec<String> {
    let open = rows.iter().take_while(|row| row.open > 0).count();
    let relevant = match (open, rows.len()) {
        (0, all) => all,
        (open, _) => open,
    };
    let room = limit.saturating_sub(1);
    let shown = match relevant.min(TARGETS_SHOWN) {
        all if all == relevant && all <= room => all,
        some => some.min(room.saturating_sub(1)),
    };
    let listed = || rows.iter().take(shown);
    let Some(width) = listed().map(|row| row.name.len()).max() else {
        return Vec::new();
    };
    let width = width.max("target".len());
    let mut lines = vec![format!(
        "targets    {DIMMED}{:<width$}  {:>8} {:>8} {:>8} {:>9}{DIMMED:#}",
        "target", "opened", "released", "open", "oldest"
    )];
    for row in listed() {
        let unless_lost = |count: u64| {
            if is_exact {
                count.to_string()
            } else {
                "?".to_owned()
            }
        };
        let opened = unless_lost(row.released + row.open);
        let released = unless_lost(row.released);
        let oldest = row.oldest_ns.map_or_else(
            || "-".to_owned(),
            |oldest_ns| duration(end_ns.saturating_sub(oldest_ns)),
        );
        lines.push(format!(
            "           {:<width$}  {opened:>8} {released:>8} {:>8} {oldest:>9}",
            row.name, row.open
        ));
    }
    if relevant > shown {
        lines.push(more(relevant - shown, ""));
    }
    lines
}

/// Returns how a remote address is shown; `None` for a visitor's, which has no port and is counted
/// by the listener.
fn target_name(address: &str) -> Option<String> {
    if address == OTHER {
        return Some("other addresses".to_owned());
    }
    let is_visitor = address.parse::<IpAddr>().is_ok();
    (!is_visitor).then(|| address.to_owned())
}

fn listener_name(port: &str) -> String {
    if port == OTHER {
        "accepted on others".to_owned()
    } else {
        format!("accepted on {port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, released: u64, open: u64) -> Row {
        Row {
            name: name.to_owned(),
            released,
            open,
            oldest_ns: (open > 0).then_some(1_000_000_000),
        }
    }

    fn text(rows: &[Row], is_exact: bool, limit: usize) -> String {
        let lines = table(rows, 31_500_000_000, is_exact, limit);
        anstream::adapter::strip_str(&lines.join("\n")).to_string()
    }

    #[test]
    fn what_is_open_is_told_by_target() {
        let rows = [
            row("127.0.0.1:6080", 0, 50),
            row("accepted on :80", 70, 2),
            row("[::1]:80", 9, 0),
        ];
        assert_eq!(
            text(&rows, true, 24),
            "targets    target             opened released     open    oldest\n\
             \x20          127.0.0.1:6080         50        0       50    30.5 s\n\
             \x20          accepted on :80        72       70        2    30.5 s"
        );
        assert!(text(&rows, false, 24).contains("127.0.0.1:6080          ?        ?       50"));
    }

    #[test]
    fn when_nothing_is_open_the_busiest_targets_are_told() {
        let names: Vec<String> = (1..=9).map(|n| format!("127.0.0.1:{n}")).collect();
        let rows: Vec<Row> = names.iter().map(|it| row(it, 5, 0)).collect();
        let table = text(&rows, true, 24);
        assert_eq!(table.lines().count(), 8);
        assert!(table.contains("127.0.0.1:6         5        5        0         -\n"));
        assert!(table.ends_with("… and 3 more: --json FILE"));
        for limit in 3..8 {
            let table = text(&rows, true, limit);
            assert_eq!(table.lines().count(), limit);
            assert!(table.ends_with(&format!("… and {} more: --json FILE", 11 - limit)));
        }
        assert_eq!(text(&rows[..3], true, 4).lines().count(), 4);
    }

    #[test]
    fn visitors_are_told_by_listener() {
        assert_eq!(target_name("10.0.0.7"), None);
        assert_eq!(target_name("fd00::7"), None);
        assert_eq!(target_name("[fd00::7]:80").unwrap(), "[fd00::7]:80");
        assert_eq!(target_name(OTHER).unwrap(), "other addresses");
        assert_eq!(listener_name(":8080"), "accepted on :8080");
    }

    #[test]
    fn without_connections_there_is_no_table() {
        assert_eq!(text(&[], true, 24), "");
    }
}
