//! The table of targets: what was opened to each, and what is still open.

use std::fmt::{self, Write};
use std::net::IpAddr;

use tracer_core::ledger::{OTHER, Peer};

use super::{DIMMED, duration};

/// How many targets are shown.
const TARGETS_SHOWN: usize = 6;

/// Writes the targets that connections are still open to, or the busiest if none is. `peers` are
/// all remote addresses, those with most open connections first; `is_exact` if no record of their
/// releases was lost.
pub(super) fn write_targets(
    text: &mut impl Write,
    peers: &[(&str, &Peer)],
    end_ns: u64,
    is_exact: bool,
) -> fmt::Result {
    let open = peers.iter().take_while(|(_, peer)| peer.open > 0).count();
    let relevant = match (open, peers.len()) {
        (0, all) => all,
        (open, _) => open,
    };
    let (shown, _) = peers.split_at(relevant.min(TARGETS_SHOWN));
    let names: Vec<String> = shown.iter().map(|(address, _)| name(address)).collect();
    let Some(width) = names.iter().map(String::len).max() else {
        return Ok(());
    };
    let width = width.max("target".len());
    writeln!(
        text,
        "targets    {DIMMED}{:<width$}  {:>8} {:>8} {:>8} {:>9}{DIMMED:#}",
        "target", "opened", "released", "open", "oldest"
    )?;
    for ((_, peer), name) in shown.iter().zip(names) {
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
        writeln!(
            text,
            "           {name:<width$}  {opened:>8} {released:>8} {:>8} {oldest:>9}",
            peer.open
        )?;
    }
    let rest = relevant - shown.len();
    if rest > 0 {
        writeln!(
            text,
            "           {DIMMED}… and {rest} more: --json FILE{DIMMED:#}"
        )?;
    }
    Ok(())
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

    fn table(peers: &[(&str, Peer)], is_exact: bool) -> String {
        let peers: Vec<(&str, &Peer)> = peers
            .iter()
            .map(|(address, peer)| (*address, peer))
            .collect();
        let mut text = String::new();
        write_targets(&mut text, &peers, 31_500_000_000, is_exact).unwrap();
        anstream::adapter::strip_str(&text).to_string()
    }

    #[test]
    fn what_is_open_is_told_by_target() {
        let peers = [
            ("127.0.0.1:6080", peer(0, 50)),
            ("10.0.0.7", peer(70, 2)),
            ("[::1]:80", peer(9, 0)),
        ];
        assert_eq!(
            table(&peers, true),
            "targets    target            opened released     open    oldest\n\
             \x20          127.0.0.1:6080        50        0       50    30.5 s\n\
             \x20          from 10.0.0.7         72       70        2    30.5 s\n"
        );
        assert!(table(&peers, false).contains("127.0.0.1:6080         ?        ?       50"));
    }

    #[test]
    fn when_nothing_is_open_the_busiest_targets_are_told() {
        let names: Vec<String> = (1..=9).map(|n| format!("127.0.0.1:{n}")).collect();
        let peers: Vec<(&str, Peer)> = names.iter().map(|it| (it.as_str(), peer(5, 0))).collect();
        let text = table(&peers, true);
        assert_eq!(text.lines().count(), 8);
        assert!(text.contains("127.0.0.1:6         5        5        0         -\n"));
        assert!(text.ends_with("… and 3 more: --json FILE\n"));
    }

    #[test]
    fn without_connections_there_is_no_table() {
        assert_eq!(table(&[], true), "");
    }
}
