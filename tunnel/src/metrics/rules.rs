//! The rules of names, checked on everything that is registered (prometheus.io, "Metric and label
//! naming").

use std::collections::BTreeSet;
use std::time::Duration;

use prometheus::proto::{MetricFamily, MetricType};
use tunnel_proto::mux::{By, Ending, Reason};
use tunnel_proto::wire::handshake::Party;

use crate::metrics::{Compat, Metrics, Transmitted};

fn families(compat: Option<Compat>) -> Vec<MetricFamily> {
    Metrics::new(compat).unwrap().registry.gather()
}

/// Every label, with how many values it may have.
const LABELS: [(&str, usize); 7] = [
    ("port", 5),
    ("reason", 20),
    ("direction", 2),
    ("version", 1),
    ("limit", 9),
    ("status", 7),
    ("timeout", 5),
];

#[test]
fn names_and_units_follow_the_rules() {
    for family in families(None) {
        let name = family.name();
        let words: Vec<&str> = name.split('_').collect();
        assert_eq!(words[0], "watertight", "{name}");
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{name}"
        );
        assert!(family.help().ends_with('.'), "{name}: {}", family.help());
        let is_counter = family.get_field_type() == MetricType::COUNTER;
        assert_eq!(is_counter, words.last() == Some(&"total"), "{name}");
        assert!(
            words.iter().filter(|word| **word == "total").count() <= 1,
            "{name}"
        );
        if family.get_field_type() == MetricType::HISTOGRAM {
            assert!(
                matches!(words.last(), Some(&"seconds" | &"bytes")),
                "{name}"
            );
        }
        // Base units, written out; and no label in a name.
        for word in [
            "ms",
            "milliseconds",
            "microseconds",
            "minutes",
            "kb",
            "kib",
            "mb",
            "percent",
            "by",
            "count",
            "sum",
        ] {
            assert!(!words.contains(&word), "{name}");
        }
    }
}

#[test]
fn series_begin_at_zero_and_their_labels_are_bounded() {
    let mut series = 0;
    for family in families(None) {
        let name = family.name();
        let metrics = family.get_metric();
        assert!(!metrics.is_empty(), "{name} has no series");
        series += metrics.len();
        for metric in metrics {
            for label in metric.get_label() {
                let known = LABELS.iter().find(|(known, _)| *known == label.name());
                let (_, most) = known.unwrap_or_else(|| panic!("{name}: {}", label.name()));
                let labels = metrics.iter().flat_map(|metric| metric.get_label());
                let same = labels.filter(|other| other.name() == label.name());
                let values: BTreeSet<_> = same.map(|label| label.value().to_owned()).collect();
                assert!(values.len() <= *most, "{name}: {values:?}");
            }
            if family.get_field_type() == MetricType::COUNTER {
                assert!(
                    metric.get_counter().get_value().abs() < f64::EPSILON,
                    "{name}"
                );
            }
        }
    }
    assert!(series > 50, "{series}");
}

/// The original's ten names break the rules, and are there by contract. There are no others.
#[test]
fn only_the_ten_of_remotedialer_break_the_rules() {
    let metrics = Metrics::new(Some(Compat::Remotedialer)).unwrap();
    let session = metrics.session_began("web", Party::Agent);
    let _ = session.stream_began(&"tcp/127.0.0.1:1".parse().unwrap());
    metrics.peer("east").attempted();
    let _ = [
        session.received(1),
        session.transmitted(Transmitted::default()),
    ];
    let families = metrics.registry.gather();
    let theirs = families.iter().map(MetricFamily::name);
    let theirs: Vec<&str> = theirs
        .filter(|name| !name.starts_with("watertight_"))
        .collect();
    assert_eq!(theirs.len(), 10, "{theirs:?}");
    assert!(
        theirs
            .iter()
            .all(|name| name.starts_with("session_server_total_"))
    );
}

#[test]
fn what_was_opened_less_what_ended_is_what_is_there() {
    let metrics = Metrics::new(None).unwrap();
    let value = |line: &str| {
        let text = metrics.text().unwrap();
        let found = text
            .lines()
            .find_map(|text| text.strip_prefix(line))
            .map(str::trim);
        found
            .unwrap_or_else(|| panic!("{line}: {text}"))
            .parse::<f64>()
            .unwrap()
    };
    let sum = |name: &str| {
        let text = metrics.text().unwrap();
        let lines = text
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum::<f64>()
    };
    let balance = |what: &str| {
        let opened = value(&format!("watertight_{what}_opened_total"));
        let there = value(&format!("watertight_{what} "));
        assert!((opened - sum(&format!("watertight_{what}_ended_total")) - there).abs() < 0.1);
        there
    };
    let target = "tcp/127.0.0.1:1".parse().unwrap();
    let session = metrics.session_began("web", Party::Agent);
    let [first, second, third] = [(); 3].map(|()| session.stream_began(&target));
    first.accepted(Duration::from_millis(3));
    first.ended(Ending::Finished, Duration::from_secs(2));
    second.ended(Ending::Reset(Reason::Denied, By::Peer), Duration::ZERO);
    assert!((balance("streams") - 1.0).abs() < 0.1);
    drop(third);
    assert!(balance("streams").abs() < 0.1);
    session.over(Reason::Replaced);
    drop(session);
    assert!(balance("sessions").abs() < 0.1);
    for (line, expected) in [
        ("watertight_streams_ended_total{reason=\"finished\"}", 1.0),
        ("watertight_streams_ended_total{reason=\"denied\"}", 1.0),
        (
            "watertight_streams_ended_total{reason=\"session over\"}",
            1.0,
        ),
        ("watertight_sessions_ended_total{reason=\"replaced\"}", 1.0),
        ("watertight_stream_duration_seconds_count", 2.0),
        ("watertight_open_duration_seconds_bucket{le=\"0.005\"}", 1.0),
    ] {
        assert!((value(line) - expected).abs() < 0.1, "{line}");
    }
}
