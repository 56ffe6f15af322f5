//! What the tracer must have found, and must not have found.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Outcome, PROGRAM};

/// A pile-up has at least so many sockets: the default of `tracer run --pile-up`.
const PILE_UP: u64 = 8;
/// The exit status of `tracer run` after a leak.
const LEAK: i32 = 3;

/// Requires that the leak was found, as one group that names the program, where it connects to and
/// the call that does it, and says what to do.
pub(super) fn leaking(outcome: &Outcome, api: &str) -> Result<()> {
    let report = &outcome.report;
    ended_with(outcome, "leak", LEAK)?;
    counted_right(outcome, api)?;
    let denied = denied(report);
    ensure!(
        denied.len() == 1,
        "{} groups of denied findings where one was expected",
        denied.len()
    );
    for group in denied {
        for (field, wanted) in [("kind", "pile-up"), ("program", PROGRAM), ("target", api)] {
            let found = text(group, field);
            ensure!(
                found == wanted,
                "the group's {field} is {found:?} where {wanted:?} was expected"
            );
        }
        let sockets = group.get("sockets").and_then(Value::as_u64);
        ensure!(
            sockets.is_some_and(|sockets| sockets >= PILE_UP),
            "the group has {sockets:?} sockets where at least {PILE_UP} were expected"
        );
        ensure!(!text(group, "advice").is_empty(), "the group has no advice");
        ensure!(
            opener(group).is_some(),
            "the group's stack names no call of {PROGRAM}"
        );
    }
    Ok(())
}

/// Requires that nothing was found.
pub(super) fn right(outcome: &Outcome, api: &str) -> Result<()> {
    ended_with(outcome, "clean", 0)?;
    counted_right(outcome, api)?;
    let denied = denied(&outcome.report).len();
    ensure!(denied == 0, "{denied} groups of denied findings");
    Ok(())
}

/// Returns the groups of denied findings.
fn denied(report: &Value) -> Vec<&Value> {
    let groups = report.get("groups").and_then(Value::as_array);
    let groups = groups.into_iter().flatten();
    groups
        .filter(|group| text(group, "level") == "deny")
        .collect()
}

/// Returns the innermost call of the program itself in a group's stack.
fn opener(group: &Value) -> Option<String> {
    let frames = group.get("stack")?.as_array()?;
    let own = format!("{PROGRAM}::");
    let mut functions = frames.iter().map(|frame| text(frame, "function"));
    functions.find(|function| function.starts_with(&own))
}

/// Returns what the kernel counted of the connections to the API: opened, released, open.
pub(super) fn kernel(report: &Value, api: &str) -> [Option<u64>; 3] {
    let peers = report.get("peers").and_then(Value::as_array);
    let peer = peers
        .into_iter()
        .flatten()
        .find(|peer| text(peer, "address") == api);
    ["opened", "released", "open"].map(|field| peer?.get(field)?.as_u64())
}

pub(super) fn text(value: &Value, field: &str) -> String {
    let text = value.get(field).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

fn ended_with(outcome: &Outcome, verdict: &str, status: i32) -> Result<()> {
    let found = text(&outcome.report, "verdict");
    let said = |field: &str| {
        outcome
            .report
            .get(field)
            .map_or(String::new(), Value::to_string)
    };
    ensure!(
        found == verdict,
        "the verdict is {found} where {verdict} was expected; reasons {}, notes {}",
        said("reasons"),
        said("notes")
    );
    ensure!(
        outcome.status == Some(status),
        "the exit status is {:?} where {status} was expected",
        outcome.status
    );
    Ok(())
}

/// Requires that the program's counters are those of the kernel: it was at rest.
fn counted_right(outcome: &Outcome, api: &str) -> Result<()> {
    let [opened, released, _] = kernel(&outcome.report, api);
    let counters = outcome.counters;
    ensure!(
        (opened, released) == (Some(counters.added), Some(counters.removed)),
        "the kernel counted {opened:?} opened and {released:?} released, the program {counters:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Clients, Counters};
    use super::*;

    const API: &str = "127.0.0.1:6080";

    fn outcome(clients: Clients) -> Outcome {
        let leaks = clients == Clients::Each;
        let added = if leaks { 120 } else { 1 };
        let group = json!({
            "kind": "pile-up",
            "level": "deny",
            "program": "aggregator",
            "target": API,
            "sockets": 40,
            "stack": [{"function": "socket"}, {"function": "aggregator::dial::{{closure}}"}],
            "advice": "use one client",
        });
        let warned = json!({"kind": "idle", "level": "warn"});
        Outcome {
            clients,
            rounds: 6,
            counters: Counters { added, removed: 0 },
            status: Some(if leaks { 3 } else { 0 }),
            report: json!({
                "verdict": if leaks { "leak" } else { "clean" },
                "groups": if leaks { json!([group, warned]) } else { json!([warned]) },
                "peers": [{"address": API, "opened": added, "released": 0, "open": added}],
            }),
        }
    }

    /// Returns what is said of an audit after a change to it.
    fn judged(clients: Clients, change: impl FnOnce(&mut Outcome)) -> Result<()> {
        let mut outcome = outcome(clients);
        change(&mut outcome);
        match clients {
            Clients::Each => leaking(&outcome, API),
            Clients::One => right(&outcome, API),
        }
    }

    fn set(clients: Clients, pointer: &str, value: Value) -> Result<()> {
        judged(clients, |outcome| {
            *outcome.report.pointer_mut(pointer).unwrap() = value;
        })
    }

    #[test]
    fn a_leak_must_be_found_with_its_cause() {
        judged(Clients::Each, |_| {}).unwrap();
        for (pointer, value) in [
            ("/verdict", json!("clean")),
            ("/groups/0/kind", json!("peer-closed")),
            ("/groups/0/program", json!("xtask")),
            ("/groups/0/target", json!("127.0.0.1:80")),
            ("/groups/0/sockets", json!(7)),
            ("/groups/0/advice", json!("")),
            ("/groups/0/stack", Value::Null),
            ("/groups/0/stack/1/function", json!("main")),
            ("/groups/0/level", json!("warn")),
            ("/groups/1/level", json!("deny")),
            ("/peers/0/opened", json!(119)),
            ("/peers/0/released", json!(1)),
            ("/peers/0/address", json!("127.0.0.1:80")),
        ] {
            assert!(set(Clients::Each, pointer, value).is_err(), "{pointer}");
        }
        assert!(judged(Clients::Each, |outcome| outcome.status = Some(0)).is_err());
    }

    #[test]
    fn nothing_must_be_found_where_nothing_leaks() {
        judged(Clients::One, |_| {}).unwrap();
        for (pointer, value) in [
            ("/verdict", json!("leak")),
            ("/verdict", json!("inconclusive")),
            ("/groups/0/level", json!("deny")),
            ("/peers/0/opened", json!(2)),
        ] {
            assert!(set(Clients::One, pointer, value).is_err(), "{pointer}");
        }
        assert!(judged(Clients::One, |outcome| outcome.status = Some(1)).is_err());
        assert!(judged(Clients::One, |outcome| outcome.status = None).is_err());
    }
}
