//! The table at the end of `cargo xtask run`: what the program believed, beside what the kernel
//! knows.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use serde_json::Value;

pub(super) const HEAD: Style = Style::new().bold();
pub(super) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();

pub(crate) fn render(rest: &Value, report: &Value) -> String {
    let target = text(rest.get("target"));
    let added = rest.get("added").and_then(Value::as_u64);
    let removed = rest.get("removed").and_then(Value::as_u64);
    let believed = added
        .zip(removed)
        .map(|(added, removed)| added.saturating_sub(removed));
    let peer = peer(report, &target);
    let of_peer = |field: &str| {
        peer.and_then(|peer| peer.get(field))
            .and_then(Value::as_u64)
    };
    let at = |path: &str| report.pointer(path).and_then(Value::as_u64);

    let mut table = String::new();
    let mut row = |name: &str, cells: [Option<u64>; 3]| {
        let [a, b, c] = cells.map(|cell| cell.map_or_else(|| "?".to_owned(), |n| n.to_string()));
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{name:<46}{a:>9}{b:>9}{c:>9}");
    };
    row(
        "the program's own counters (add, remove)",
        [added, removed, believed],
    );
    row(
        &format!("the kernel, to {target}"),
        [of_peer("opened"), of_peer("released"), of_peer("open")],
    );
    let opened = at("/sockets/created")
        .zip(at("/sockets/accepted"))
        .map(|(a, b)| a + b);
    row(
        "the kernel, every socket of every process",
        [opened, at("/sockets/released"), at("/sockets/open")],
    );
    row(
        "streams (bound, ended)",
        [
            at("/owners/streams_bound"),
            at("/owners/streams_ended"),
            at("/owners/streams_bound")
                .zip(at("/owners/streams_ended"))
                .map(|(bound, ended)| bound.saturating_sub(ended)),
        ],
    );
    let verdict = text(report.get("verdict"));
    let style = if verdict == "clean" { GOOD } else { BAD };
    let agrees = report.pointer("/witness/agrees").and_then(Value::as_bool) == Some(true);
    format!(
        "\n{HEAD}{:<46}{:>9}{:>9}{:>9}{HEAD:#}\n{table}outlive    p50 {}, p99 {}, max {}\nwitness    {}\nverdict    {style}{verdict}{style:#}\n",
        "sockets",
        "opened",
        "released",
        "open",
        milliseconds(at("/outlive_ns/p50")),
        milliseconds(at("/outlive_ns/p99")),
        milliseconds(at("/outlive_ns/max")),
        if agrees {
            "agrees with the counters, socket by socket"
        } else {
            "does not agree"
        },
    )
}

fn peer<'a>(report: &'a Value, address: &str) -> Option<&'a Value> {
    report
        .get("peers")?
        .as_array()?
        .iter()
        .find(|peer| peer.get("address").and_then(Value::as_str) == Some(address))
}

fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or("?").to_owned()
}

fn milliseconds(ns: Option<u64>) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three decimals are printed")]
    ns.map_or_else(|| "?".to_owned(), |ns| format!("{:.3} ms", ns as f64 / 1e6))
}
