//! Many connections, with rings that lose records, readers that stop and few slots.

use serde_json::Value;

use crate::case::{Case, Holders, OUTLIVED, clean, expect, leaks};

/// With thousands of connections, a thread may wait for a CPU for longer than the grace of the
/// other cases.
const PATIENT: &[&str] = &["--grace", "1s"];

const FEW_PLACES: &[&str] = &["--grace", "1s", "--places", "64"];

const TINY_RING: &[&str] = &["--grace", "1s", "--ring", "4"];

const SMALL_RING: &[&str] = &["--grace", "1s", "--ring", "64"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            options: PATIENT,
            more: many,
            ..clean("many_connections")
        },
        Case {
            options: PATIENT,
            more: many,
            ..leaks("many_connections_one_leaked", OUTLIVED)
        },
        Case {
            options: FEW_PLACES,
            more: many_share_few_places,
            ..clean("many_connections with few places")
        },
        Case {
            options: PATIENT,
            ..clean("many_connections_looked_at")
        },
        Case {
            options: PATIENT,
            ..leaks("planted", &[("outlived-request", 25)])
        },
        Case {
            options: TINY_RING,
            more: many_and_lost,
            ..clean("many_connections with a tiny ring")
        },
        Case {
            options: TINY_RING,
            more: many_and_lost,
            ..leaks("many_connections_one_leaked with a tiny ring", OUTLIVED)
        },
        Case {
            options: SMALL_RING,
            reader_stops: true,
            more: many_and_lost,
            ..clean("many_connections with a stopped reader")
        },
        Case {
            options: SMALL_RING,
            reader_stops: true,
            holders: Holders::AsPrintedIfSeen,
            more: many_and_lost,
            ..leaks(
                "many_connections_one_leaked with a stopped reader",
                OUTLIVED,
            )
        },
    ]
}

/// The kernel's counts are exact; what only records tell is unknown.
fn many_and_lost(report: &Value) -> Result<(), String> {
    many_in_the_kernel(report)?;
    expect(&report["owners"]["streams_bound"], &Value::Null, "bound")?;
    expect(&report["outlive_ns"]["count"], &Value::Null, "outlive")?;
    let lost = report["completeness"]["lost_events"].as_u64();
    expect(&(lost > Some(0)), &true, "records were lost")
}

fn many(report: &Value) -> Result<(), String> {
    many_in_the_kernel(report)?;
    expect(&report["completeness"]["lost_events"], &0.into(), "lost")?;
    expect(&report["owners"]["streams_bound"], &20_000.into(), "bound")?;
    expect(&report["owners"]["streams_ended"], &20_000.into(), "ended")
}

/// 20,000 connections have 40,000 ends; there are eight listeners.
fn many_in_the_kernel(report: &Value) -> Result<(), String> {
    expect(&report["sockets"]["created"], &20_008.into(), "created")?;
    expect(&report["sockets"]["accepted"], &20_000.into(), "accepted")?;
    expect(&report["sockets"]["connected"], &20_000.into(), "connected")
}

/// About half find a place. Were none given back, only those would that come to the address of a
/// former owner, a tenth.
fn many_share_few_places(report: &Value) -> Result<(), String> {
    many(report)?;
    let without = report["completeness"]["without_place"].as_u64();
    expect(&(without < Some(30_000)), &true, "places are given back")
}
