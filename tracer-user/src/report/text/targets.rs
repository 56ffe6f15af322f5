//! The table of targets: what was opened to each, and what is still open.

use std::net::IpAddr;

use tracer_core::ledger::{OTHER, Peer};
use tracer_core::report::Report;

use super::screen::more;
use super::{DIMMED, duration};

/// How many targets are shown.
const TARGETS_SHOWN: usize = 6;

/// Returns the table, in at most `limit` lines.
pub(super) fn lines(report: &Report<'_>, limit: usize) -> Vec<String> {
    table(
        &report.ledger.peers().top(usize::MAX),
        report.audit_log.window.end_ns,
        report.audit_log.counters.lost_records() == 0,
        limit,
    )
}

/// Returns the targets that connections are still open to, or the busiest if none is. `peers` are
/// all remote addresses, those with most open connections first; `is_exact` if no record of their
/// releases was lost.
fn table(peers: &[(&str, &Peer)], end_ns: u64, is_exact: bool, limit: usize) -> Vec<String> {
    let open = peers.iter().take_while(|(_, peer)| peer.open > 0).count();
    let relevant = match (open, peers.len()) {
        (0, all) => all,
        (open, _) => open,
    };
    let room = limit.saturating_sub(1);
    let shown = match relevant.min(TARGETS_SHOWN) {
        all if all == relevant && all <= room => all,
        some => some.min(room.saturating_sub(1)),
    };
    let names: Vec<String> = peers.iter().take(shown).map(|(it, _)| name(it)).collect();
    let Some(width) = names.iter().map(String::len).max() else {
        return Vec::new();
    };
    let width = width.max("target".len());
    let mut lines = vec![format!(
        "targets    {DIMMED}{:<width$}  {:>8} {:>8} {:>8} {:>9}{DIMMED:#}",
        "target", "opened", "released", "open", "oldest"
    )];
    for ((_, peer), name) in peers.iter().zip(names) {
        let unless_lost = |count: u64| {
            if is_exact {
                count.to_string()
            } else {
                "?".to_owned()
            }
        };
        let opened = unless_lost(peer.released + peer.open);
        let released = unless_lost(peer.released);
        let oldest = peer.oldest_ns.map_or_else(
            || "-".to_owned(),
            |oldest_ns| duration(end_ns.saturating_sub(oldest_ns)),
        );
        lines.push(format!(
            "           {name:<width$}  {opened:>8} {released:>8} {:>8} {oldest:>9}",
            peer.open
        ));
    }
    if relevant > shown {
        lines.push(more(relevant - shown, ""));
    }
    lines
}

/// Returns how a remote address is shown. Without a port it is of visitors, whose ports are random.
fn name(address: &str) -> String {
    if address == OTHER {
        "other addresses".to_owned()
    } else if address.parse::<IpAddr>().is_ok() {
        format!("from {address}")
    } else {
        address.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(released: u64, open: u64) -> Peer {
        Peer {
            released,
            open,
            oldest_ns: (open > 0).then_some(1_000_000_000),
        }
    }

    fn text(peers: &[(&str, Peer)], is_exact: bool, limit: usize) -> String {
        let peers: Vec<(&str, &Peer)> = peers
            .iter()
            .map(|(address, peer)| (*address, peer))
            .collect();
        let lines = table(&peers, 31_500_000_000, is_exact, limit);
        anstream::adapter::strip_str(&lines.join("\n")).to_string()
    }

    #[test]
    fn what_is_open_is_told_by_target() {
        let peers = [
            ("127.0.0.1:6080", peer(0, 50)),
            ("10.0.0.7", peer(70, 2)),
            ("[::1]:80", peer(9, 0)),
        ];
        assert_eq!(
            text(&peers, true, 24),
            "targets    target            opened released     open    oldest\n\
             \x20          127.0.0.1:6080        50        0       50    30.5 s\n\
             \x20          from 10.0.0.7         72       70        2    30.5 s"
        );
        assert!(text(&peers, false, 24).contains("127.0.0.1:6080         ?        ?       50"));
    }

    #[test]
    fn when_nothing_is_open_the_busiest_targets_are_told() {
        let names: Vec<String> = (1..=9).map(|n| format!("127.0.0.1:{n}")).collect();
        let peers: Vec<(&str, Peer)> = names.iter().map(|it| (it.as_str(), peer(5, 0))).collect();
        let table = text(&peers, true, 24);
        assert_eq!(table.lines().count(), 8);
        assert!(table.contains("127.0.0.1:6         5        5        0         -\n"));
        assert!(table.ends_with("… and 3 more: --json FILE"));
        for limit in 3..8 {
            let table = text(&peers, true, limit);
            assert_eq!(table.lines().count(), limit);
            assert!(table.ends_with(&format!("… and {} more: --json FILE", 11 - limit)));
        }
        assert_eq!(text(&peers[..3], true, 4).lines().count(), 4);
    }

    #[test]
    fn without_connections_there_is_no_table() {
        assert_eq!(text(&[], true, 24), "");
    }
}
