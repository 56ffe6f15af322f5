//! The table of `tracer top`, for people.

use std::fmt::{self, Write};

use anstyle::{AnsiColor, Style};
use tracer_core::top::{Counts, Row, Snapshot, View};

use super::{next_command, program_name};
use crate::process_names::ProcessNames;

const DIMMED: Style = Style::new().dimmed();
const BAD: Style = AnsiColor::Red.on_default().bold();
const BOLD: Style = Style::new().bold();
/// How many lines there are beside the rows.
pub(super) const OTHER_LINES: usize = 8;
/// The widest names that are shown whole, and how narrow they may become on a narrow screen.
const PROGRAM_WIDTH: (usize, usize) = (24, 8);
const TARGET_WIDTH: (usize, usize) = (60, 21);
/// The columns right of the target, with the spaces before them.
const NUMBERS_WIDTH: usize = 39;

/// Returns the table with ANSI styles, `columns` wide at most.
pub(super) fn render(
    snapshot: &Snapshot,
    view: &View,
    names: &mut ProcessNames,
    columns: usize,
) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut text, snapshot, view, names, columns);
    text
}

fn write_all(
    text: &mut String,
    snapshot: &Snapshot,
    view: &View,
    names: &mut ProcessNames,
    columns: usize,
) -> fmt::Result {
    let interval = seconds(snapshot.interval_ns);
    let watched = seconds(snapshot.watched_ns);
    writeln!(
        text,
        "{BOLD}{} internet sockets of {} processes{BOLD:#}, look {} after {watched}",
        snapshot.sockets, snapshot.processes, snapshot.looks
    )?;
    if snapshot.unlisted > 0 {
        let unlisted = snapshot.unlisted;
        writeln!(
            text,
            "{unlisted} more descriptors were too many to be looked at"
        )?;
    }
    if view.rows.is_empty() {
        writeln!(
            text,
            "nothing suspicious: none stays in CLOSE_WAIT or dead, bytes moved on every connection, \
             and no number grew (--all shows every row)"
        )?;
        return Ok(());
    }
    writeln!(text)?;
    write_rows(text, &view.rows, names, columns)?;
    if view.omitted_rows > 0 {
        let (rows, sockets) = (view.omitted_rows, view.omitted_sockets);
        writeln!(
            text,
            "{DIMMED}… and {rows} more rows with {sockets} sockets{DIMMED:#}"
        )?;
    }
    let silence = if snapshot.knows_idle() {
        "IDLE: no byte in 1 min".to_owned()
    } else {
        format!("QUIET: no byte in {interval}")
    };
    writeln!(
        text,
        "\n{DIMMED}DEAD: in CLOSE, still open. {silence}. GROWTH: in {watched}.{DIMMED:#}"
    )?;
    if let Some(command) = next_command(view) {
        writeln!(text, "evidence   {BOLD}{command}{BOLD:#}")?;
    }
    Ok(())
}

fn write_rows(
    text: &mut String,
    rows: &[Row],
    names: &mut ProcessNames,
    columns: usize,
) -> fmt::Result {
    let cells: Vec<(String, String, String)> = rows
        .iter()
        .map(|row| {
            let name = names.of(row.pid);
            let executable = name.as_ref().and_then(|name| name.executable.as_deref());
            let pid = if row.pid == 0 {
                "?".to_owned()
            } else {
                row.pid.to_string()
            };
            let program = program_name(&row.comm, executable);
            (program, pid, row.target.to_string())
        })
        .collect();
    let widest = |header: &str, of: fn(&(String, String, String)) -> &str| {
        let widths = cells.iter().map(|cell| of(cell).chars().count());
        widths.max().unwrap_or(0).max(header.len())
    };
    let pid_width = widest("PID", |cell| &cell.1);
    let program_width = widest("PROGRAM", |cell| &cell.0).min(PROGRAM_WIDTH.0);
    let target_width = widest("TARGET", |cell| &cell.2).min(TARGET_WIDTH.0);
    let fixed = pid_width + 2 + NUMBERS_WIDTH;
    let (program_width, target_width) = fit(program_width, target_width, columns, fixed);
    let silence = if rows.iter().any(|row| row.counts.idle.is_some()) {
        "IDLE"
    } else {
        "QUIET"
    };
    writeln!(
        text,
        "{DIMMED}{:<program_width$} {:>pid_width$} {:<target_width$} {:>6} {:>10} {:>5} \
         {silence:>6} {:>7}{DIMMED:#}",
        "PROGRAM", "PID", "TARGET", "OPEN", "CLOSE_WAIT", "DEAD", "GROWTH"
    )?;
    for (row, (program, pid, target)) in rows.iter().zip(&cells) {
        let (program, target) = (clip(program, program_width), clip(target, target_width));
        write!(
            text,
            "{program:<program_width$} {pid:>pid_width$} {target:<target_width$}"
        )?;
        write_counts(text, &row.counts)?;
    }
    Ok(())
}

fn write_counts(text: &mut String, counts: &Counts) -> fmt::Result {
    let bad = |kept: u64| if kept > 0 { BAD } else { Style::new() };
    let (waiting, dead) = (bad(counts.close_wait_kept), bad(counts.dead_kept));
    let growth = match counts.growth_since_start {
        0 => "0".to_owned(),
        growth => format!("{growth:+}"),
    };
    writeln!(
        text,
        " {:>6} {waiting}{:>10}{waiting:#} {dead}{:>5}{dead:#} {:>6} {growth:>7}",
        counts.open,
        counts.close_wait,
        counts.dead,
        counts.idle.unwrap_or(counts.quiet)
    )
}

/// Returns widths of the program and the target that fit into `columns` next to `fixed` others: the
/// program is cut first.
fn fit(program: usize, target: usize, columns: usize, fixed: usize) -> (usize, usize) {
    let over = |program: usize, target: usize| (program + target + fixed).saturating_sub(columns);
    let cut = over(program, target).min(program.saturating_sub(PROGRAM_WIDTH.1));
    let program = program - cut;
    let cut = over(program, target).min(target.saturating_sub(TARGET_WIDTH.1));
    (program, target - cut)
}

/// Cuts off what is wider than `width` characters.
fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut clipped: String = text.chars().take(width.saturating_sub(1)).collect();
    clipped.push('…');
    clipped
}

fn seconds(ns: u64) -> String {
    let tenths = ns / 100_000_000;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tracer_core::top::Target;

    use super::*;

    fn row(pid: u32, comm: &str, target: Target, counts: Counts) -> Row {
        Row {
            pid,
            comm: comm.to_owned(),
            target,
            counts,
        }
    }

    fn snapshot() -> Snapshot {
        let remote: SocketAddr = "10.0.0.9:5432".parse().unwrap();
        let dialed = Target::Dialed {
            protocol: 6,
            remote,
        };
        let leaking = Counts {
            open: 512,
            close_wait: 200,
            close_wait_kept: 199,
            dead: 3,
            dead_kept: 3,
            quiet: 508,
            idle: None,
            growth: 7,
            growth_since_start: 7,
        };
        let quiet = Counts {
            open: 1,
            quiet: 1,
            ..Counts::default()
        };
        Snapshot {
            looks: 2,
            interval_ns: 1_040_000_000,
            watched_ns: 1_040_000_000,
            sockets: 513,
            processes: 2,
            // No process has such numbers.
            rows: vec![
                row(u32::MAX, "leaky", dialed, leaking),
                row(0, "elsewhere", Target::Unconnected { protocol: 17 }, quiet),
            ],
            ..Snapshot::default()
        }
    }

    fn rendered(snapshot: &Snapshot, limit: usize, columns: usize) -> String {
        let view = snapshot.view(false, limit);
        let text = render(snapshot, &view, &mut ProcessNames::default(), columns);
        anstream::adapter::strip_str(&text).to_string()
    }

    #[test]
    fn the_table_has_aligned_columns_and_the_next_command() {
        assert_eq!(
            rendered(&snapshot(), 20, 200),
            "513 internet sockets of 2 processes, look 2 after 1.0 s\n\n\
             PROGRAM          PID TARGET              OPEN CLOSE_WAIT  DEAD  QUIET  GROWTH\n\
             leaky     4294967295 10.0.0.9:5432        512        200     3    508      +7\n\
             elsewhere          ? udp not connected      1          0     0      1       0\n\n\
             DEAD: in CLOSE, still open. QUIET: no byte in 1.0 s. GROWTH: in 1.0 s.\n\
             evidence   tracer attach --pid 4294967295 --for 5m\n"
        );
    }

    #[test]
    fn it_fits_the_screen() {
        let mut snapshot = snapshot();
        snapshot.rows[0].comm = "a-name-of-fifteen-and-more".to_owned();
        let text = rendered(&snapshot, 1, 80);
        assert!(text.lines().take(4).all(|line| line.chars().count() <= 80));
        assert!(text.contains("… and 1 more rows with 1 sockets"));
        assert!(text.lines().count() < OTHER_LINES + 1);
    }

    #[test]
    fn where_nothing_is_suspicious_no_command_follows() {
        let mut snapshot = snapshot();
        snapshot.rows.clear();
        let text = rendered(&snapshot, 20, 80);
        assert!(text.contains("nothing suspicious"));
        assert!(!text.contains("tracer attach"));
    }
}
