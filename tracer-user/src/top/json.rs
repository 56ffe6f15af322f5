//! What `tracer top --json` writes, schema "watertight.top/1": one line for each look.

use std::io::{self, Write};

use serde::Serialize;
use tracer_core::top::{Snapshot, Target, View};

use super::{next_command, program_name};
use crate::process_names::ProcessNames;

const SCHEMA: &str = "watertight.top/1";

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    looks: u64,
    interval_ms: u64,
    watched_ms: u64,
    processes: u64,
    sockets: u64,
    unlisted: u64,
    other_families: u64,
    rows: Vec<Row>,
    omitted_rows: u64,
    omitted_sockets: u64,
    attach: Option<String>,
}

#[derive(Serialize)]
struct Row {
    program: String,
    executable: Option<String>,
    pid: Option<u32>,
    direction: &'static str,
    protocol: Option<String>,
    target: Option<String>,
    targets: u64,
    open: u64,
    close_wait: u64,
    close_wait_kept: u64,
    dead: u64,
    dead_kept: u64,
    quiet: u64,
    idle: Option<u64>,
    growth: i64,
    growth_since_start: i64,
}

/// Writes a snapshot.
pub(super) fn write(
    snapshot: &Snapshot,
    view: &View,
    names: &mut ProcessNames,
    to: &mut impl Write,
) -> io::Result<()> {
    let document = Document {
        schema: SCHEMA,
        looks: snapshot.looks,
        interval_ms: snapshot.interval_ns / 1_000_000,
        watched_ms: snapshot.watched_ns / 1_000_000,
        processes: snapshot.processes,
        sockets: snapshot.sockets,
        unlisted: snapshot.unlisted,
        other_families: snapshot.other_families,
        rows: view.rows.iter().map(|row| Row::of(row, names)).collect(),
        omitted_rows: view.omitted_rows,
        omitted_sockets: view.omitted_sockets,
        attach: next_command(view),
    };
    serde_json::to_writer(&mut *to, &document)?;
    writeln!(to)
}

impl Row {
    fn of(row: &tracer_core::top::Row, names: &mut ProcessNames) -> Self {
        let name = names.of(row.pid);
        let executable = name.and_then(|name| name.executable.clone());
        let (direction, target, targets) = match &row.target {
            Target::Dialed { remote, .. } => ("dialed", Some(remote.to_string()), 1),
            Target::Accepted { listener, .. } => ("accepted", Some(listener.to_string()), 1),
            Target::Listening => ("listening", None, 1),
            Target::Unconnected { .. } => ("none", None, 1),
            Target::Several(number) => ("several", None, *number),
        };
        let counts = row.counts;
        Self {
            program: program_name(&row.comm, executable.as_deref()),
            executable,
            pid: (row.pid != 0).then_some(row.pid),
            direction,
            protocol: row.target.protocol(),
            target,
            targets,
            open: counts.open,
            close_wait: counts.close_wait,
            close_wait_kept: counts.close_wait_kept,
            dead: counts.dead,
            dead_kept: counts.dead_kept,
            quiet: counts.quiet,
            idle: counts.idle,
            growth: counts.growth,
            growth_since_start: counts.growth_since_start,
        }
    }
}
