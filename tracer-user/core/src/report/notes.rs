//! Notes of a report: they do not change the verdict.

use tracer_abi::counter::Counter;

use super::audit_log::AuditLog;
use crate::ledger::{Ledger, PileNote, PileState};

/// How many piles are named.
const PILES_NAMED: usize = 8;

/// Returns the notes, one whole sentence each.
pub(super) fn notes(audit_log: &AuditLog, ledger: &Ledger) -> Vec<String> {
    let mut notes: Vec<String> = nothing_judged(audit_log).into_iter().collect();
    let after = seconds(ledger.timeouts().piles.after_ns);
    let piles = ledger.pile_notes();
    let named = piles.iter().take(PILES_NAMED);
    notes.extend(named.map(|pile| pile_note(pile, &after)));
    let rest = piles.len().saturating_sub(PILES_NAMED);
    if rest > 0 {
        notes.push(format!("{rest} more such piles are not named"));
    }
    notes
}

/// Says that no rule was tried on any socket, for want of one.
fn nothing_judged(audit_log: &AuditLog) -> Option<String> {
    let seen = [
        Counter::Adopted,
        Counter::Created,
        Counter::Accepted,
        Counter::Released,
        Counter::Unhooked,
    ];
    let is_none = audit_log.walk.as_ref().is_some_and(|walk| walk.open == 0)
        && seen.iter().all(|it| audit_log.counters.of(*it) == 0);
    is_none.then(|| "no internet socket was opened: nothing was judged".to_owned())
}

fn pile_note(pile: &PileNote, after: &str) -> String {
    let PileNote {
        opener,
        comm,
        target,
        size,
        state,
    } = pile;
    let why = match state {
        PileState::Young => {
            format!("too young to judge: load it for longer than {after}, or set --pile-up-after")
        }
        PileState::Steady => "their number has not grown enough since: a pool or subscriptions \
                              look like this"
            .to_owned(),
        PileState::Spread => "their number grows, and no target has enough of them for a finding: \
                              one connection for each target, and none is closed"
            .to_owned(),
    };
    format!("{size} connections of {comm}[{opener}] to {target} were opened, used and kept; {why}")
}

/// Formats a time in minutes, seconds or milliseconds.
fn seconds(ns: u64) -> String {
    match ns / 1_000_000 {
        ms if ms >= 60_000 && ms.is_multiple_of(60_000) => format!("{} m", ms / 60_000),
        ms if ms.is_multiple_of(1000) => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_what_is_missing() {
        let mut pile = PileNote {
            opener: 7,
            comm: "server".to_owned(),
            target: "127.0.0.1:6080".to_owned(),
            size: 50,
            state: PileState::Young,
        };
        assert_eq!(
            pile_note(&pile, &seconds(120_000_000_000)),
            "50 connections of server[7] to 127.0.0.1:6080 were opened, used and kept; too young to \
             judge: load it for longer than 2 m, or set --pile-up-after"
        );
        pile.state = PileState::Steady;
        assert!(pile_note(&pile, "3 s").contains("has not grown"));
        assert_eq!(
            (seconds(3_000_000_000), seconds(1_000_000)),
            ("3 s".into(), "1 ms".into())
        );
    }
}
