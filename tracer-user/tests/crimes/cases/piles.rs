//! Connections that pile up, and some that only look like it.

use serde_json::Value;

use crate::case::{Case, Holders, clean, expect, findings, leaks};

const SHORT_PILES: &[&str] = &["--grace", "300ms", "--pile-up-after", "1s"];

const PYTHON: &[&str] = &["python3"];
const GO: &[&str] = &["go"];
const NODE: &[&str] = &["node"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        piles_up("pile_one_for_each_request", &[]),
        piles_up("pile_python_leaking", PYTHON),
        piles_up("pile_go_leaking", GO),
        piles_up("pile_node_leaking", NODE),
        udp_piles_up("pile_udp_one_for_each_query", &[]),
        udp_piles_up("pile_udp_without_target", &[]),
        udp_piles_up("pile_python_udp_leaking", PYTHON),
        udp_piles_up("pile_go_udp_leaking", GO),
        udp_piles_up("pile_node_udp_leaking", NODE),
        keeps_quiet("pile_udp_reused", &[]),
        keeps_quiet("pile_python_udp_right", PYTHON),
        keeps_quiet("pile_go_udp_right", GO),
        keeps_quiet("pile_node_udp_right", NODE),
        keeps_quiet("pile_pool_reused", &[]),
        keeps_quiet("pile_burst_drained", &[]),
        keeps_quiet("pile_all_in_use", &[]),
        keeps_quiet("pile_python_right", PYTHON),
        keeps_quiet("pile_python_burst", PYTHON),
        keeps_quiet("pile_python_tenants", PYTHON),
        keeps_quiet("pile_go_right", GO),
        keeps_quiet("pile_go_idle_timeout", GO),
        keeps_quiet("pile_go_shrink", GO),
        keeps_quiet("pile_go_load", GO),
        keeps_quiet("pile_node_right", NODE),
        Case {
            more: |_| Ok(()),
            ..keeps_quiet("pile_python_tenants_arriving", PYTHON)
        },
        Case {
            more: |_| Ok(()),
            ..keeps_quiet("pile_python_long_polls", PYTHON)
        },
        Case {
            more: |_| Ok(()),
            ..keeps_quiet("pile_go_watches", GO)
        },
        Case {
            more: |report| is_noted(report, "has not grown"),
            ..keeps_quiet("pile_python_database", PYTHON)
        },
        Case {
            more: |report| is_noted(report, "has not grown"),
            ..keeps_quiet("pile_node_subscriptions", NODE)
        },
        Case {
            more: |report| is_noted(report, "has not grown"),
            ..keeps_quiet("pile_node_housekeeper", NODE)
        },
        Case {
            more: |report| is_noted(report, "has not grown"),
            ..keeps_quiet("pile_subscriptions", &[])
        },
        Case {
            more: |report| is_noted(report, "has not grown"),
            ..keeps_quiet("pile_housekeeper", &[])
        },
        Case {
            more: |report| is_noted(report, "to all targets"),
            ..keeps_quiet("pile_spread", &[])
        },
        Case {
            more: |report| is_noted(report, "too young"),
            options: &["--grace", "300ms"],
            ..keeps_quiet("pile_young", &[])
        },
    ]
}

const fn piles_up(name: &'static str, needs: &'static [&'static str]) -> Case {
    Case {
        holders: Holders::OneEach,
        options: SHORT_PILES,
        needs,
        more: |report| {
            let state = findings(report)
                .iter()
                .filter(|found| found["level"] == "deny");
            let all = state.map(|found| found["tcp_state"].as_str());
            let open = all.filter(|state| *state == Some("ESTABLISHED"));
            expect(&(open.count() >= 8), &true, "they were seen open")?;
            is_one_group(report)
        },
        ..leaks(name, &[("pile-up", 8)])
    }
}

const fn udp_piles_up(name: &'static str, needs: &'static [&'static str]) -> Case {
    Case {
        holders: Holders::OneEach,
        options: SHORT_PILES,
        needs,
        ..leaks(name, &[("pile-up", 8)])
    }
}

const fn keeps_quiet(name: &'static str, needs: &'static [&'static str]) -> Case {
    Case {
        options: SHORT_PILES,
        needs,
        more: |report| expect(&report["notes"], &serde_json::json!([]), "notes"),
        ..clean(name)
    }
}

/// One cause is one group, which comes first and says what to do.
fn is_one_group(report: &Value) -> Result<(), String> {
    let groups = report["groups"].as_array().map_or(&[][..], Vec::as_slice);
    let denied: Vec<&Value> = groups.iter().filter(|it| it["level"] == "deny").collect();
    let [group] = denied.as_slice() else {
        return Err(format!(
            "{} denied groups where one was expected",
            denied.len()
        ));
    };
    let found = findings(report).iter().filter(|it| it["level"] == "deny");
    expect(
        &group["sockets"],
        &found.count().into(),
        "sockets of the group",
    )?;
    let text = |key: &str| group[key].as_str().unwrap_or_default().to_owned();
    expect(&text("target").starts_with("127.0.0.1:"), &true, "target")?;
    expect(&text("advice").contains("one client"), &true, "advice")?;
    expect(&group["example"]["kind"], &"pile-up".into(), "example")
}

fn is_noted(report: &Value, words: &str) -> Result<(), String> {
    let notes = report["notes"].as_array().map_or(&[][..], Vec::as_slice);
    let is_one = |note: &Value| note.as_str().is_some_and(|note| note.contains(words));
    expect(
        &notes.iter().filter(|note| is_one(note)).count(),
        &1,
        "such notes",
    )
}
