//! The findings by cause, as a family of gauges.

use std::collections::HashMap;

use anyhow::Result;
use prometheus::{IntGaugeVec, Opts};
use tracer_core::ledger::{Findings, OTHER};
use tracer_core::report::{Group, group_by_cause, split_listed};
use tracer_core::verdict::Finding;

/// How many causes have a time series of their own. Further ones are added up under [`OTHER`].
const CAUSES_MAX: usize = 64;
/// The longest value of a label, in characters.
const LABEL_CHARS_MAX: usize = 128;

const LABELS: [&str; 5] = ["kind", "level", "program", "executable", "target"];

/// Returns the family: sockets that have a finding and are open.
pub(super) fn open_by_cause(findings: &Findings) -> Result<IntGaugeVec> {
    let open: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.released_ns.is_none())
        .collect();
    // Stacks are named when the audit ends.
    let stacks = HashMap::new();
    family(&group_by_cause(&open, &stacks, findings.levels()))
}

fn family(groups: &[Group<'_>]) -> Result<IntGaugeVec> {
    let family = IntGaugeVec::new(
        Opts::new(
            "watertight_audit_finding_sockets",
            "Sockets that have a finding and are open now, by cause.",
        ),
        &LABELS,
    )?;
    let (listed, rest) = split_listed(groups, CAUSES_MAX);
    for group in listed {
        let program = label(group.program.unwrap_or_default());
        let executable = label(group.executable.unwrap_or_default());
        let target = label(group.target.as_deref().unwrap_or_default());
        add(&family, group, [&program, &executable, &target]);
    }
    for group in rest {
        add(&family, group, [OTHER; 3]);
    }
    Ok(family)
}

fn add(family: &IntGaugeVec, group: &Group<'_>, [program, executable, target]: [&str; 3]) {
    let labels = [
        group.kind.name(),
        group.level.name(),
        program,
        executable,
        target,
    ];
    let sockets = i64::try_from(group.sockets).unwrap_or(i64::MAX);
    family.with_label_values(&labels).add(sockets);
}

/// Bounds the length of a text that the traced program chooses.
pub(super) fn label(text: &str) -> String {
    text.chars().take(LABEL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector as _;
    use tracer_core::verdict::{Kind, Level};

    use super::*;

    fn example() -> Finding {
        Finding {
            kind: Kind::PileUp,
            id: 1,
            cookie: None,
            tuple: None,
            accepted: false,
            tcp_state: None,
            owner: None,
            holders: Vec::new(),
            holders_unlisted: 0,
            opener: None,
            born_ns: 0,
            is_adopted: false,
            ended_ns: None,
            since_ns: 0,
            released_ns: None,
            releaser: None,
            seen_ns: 0,
            bytes_in: None,
            bytes_out: None,
            unread: None,
            unsent: None,
        }
    }

    #[test]
    fn time_series_are_bounded_and_nothing_is_left_out() {
        let example = example();
        let programs: Vec<String> = (0..1000)
            .map(|n| format!("{n}{}", "x".repeat(5000)))
            .collect();
        let groups: Vec<Group<'_>> = programs
            .iter()
            .map(|program| Group {
                kind: Kind::PileUp,
                level: Level::Deny,
                program: Some(program),
                executable: None,
                target: Some("127.0.0.1:6080".to_owned()),
                stack: None,
                sockets: 3,
                oldest_ns: 0,
                growth_per_min: None,
                example: &example,
            })
            .collect();
        let families = family(&groups).unwrap().collect();
        let series = families[0].get_metric();
        assert_eq!(series.len(), CAUSES_MAX + 1);
        let sum: f64 = series.iter().map(|it| it.get_gauge().get_value()).sum();
        assert_eq!(sum, 3000.0);
        let labels = series.iter().flat_map(|it| it.get_label());
        let longest = labels.map(|it| it.value().len()).max();
        assert_eq!(longest, Some(LABEL_CHARS_MAX));
    }
}
