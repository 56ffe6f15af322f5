//! Rows: the sockets of one process to one target, and which of them are shown.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::{Snapshot, Target};
use crate::event::comm_text;

/// What one socket that is certainly of no use weighs, next to one that is only quiet.
const CERTAIN: u64 = 10;
/// How many targets of one process are shown, the others as one row, unless all are.
const TARGETS_SHOWN: usize = 5;

/// The sockets of one process to one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The process; 0 if it has no number in this PID namespace.
    pub pid: u32,
    /// Its `comm`, printable.
    pub comm: String,
    /// What the sockets have in common.
    pub target: Target,
    /// How many there are of which.
    pub counts: Counts,
}

/// How many sockets there are of which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub open: u64,
    /// In CLOSE_WAIT: the peer has finished.
    pub close_wait: u64,
    /// Of those, the ones that were so at the look before.
    pub close_wait_kept: u64,
    /// In CLOSE with a descriptor and a target: the connection is over.
    pub dead: u64,
    /// Of those, the ones that were so at the look before.
    pub dead_kept: u64,
    /// Connections on which no byte has moved since the look before.
    pub quiet: u64,
    /// Connections on which no byte has moved for [`IDLE_NS`](super::IDLE_NS); `None` until the
    /// looks have gone on for that long.
    pub idle: Option<u64>,
    /// How many more are open than at the look before.
    pub growth: i64,
    /// How many more are open than at the first look.
    pub growth_since_start: i64,
}

impl Counts {
    /// Returns how suspicious they are: 0 if not at all.
    #[must_use]
    pub fn score(&self) -> u64 {
        let certain = self.close_wait_kept.saturating_add(self.dead_kept);
        let growth = u64::try_from(self.growth_since_start).unwrap_or(0);
        certain
            .saturating_mul(CERTAIN)
            .saturating_add(self.idle.unwrap_or(self.quiet))
            .saturating_add(growth)
    }

    fn add(&mut self, more: &Self) {
        self.open += more.open;
        self.close_wait += more.close_wait;
        self.close_wait_kept += more.close_wait_kept;
        self.dead += more.dead;
        self.dead_kept += more.dead_kept;
        self.quiet += more.quiet;
        if let Some(idle) = more.idle {
            *self.idle.get_or_insert(0) += idle;
        }
        self.growth += more.growth;
        self.growth_since_start += more.growth_since_start;
    }
}

impl Row {
    pub(super) fn new(pid: u32, comm: [u8; 16], target: Target) -> Self {
        Self {
            pid,
            comm: comm_text(&comm),
            target,
            counts: Counts::default(),
        }
    }
}

/// Sorts rows, the most suspicious first, then those that dialed, then those with most sockets.
pub(super) fn sort(rows: &mut [Row]) {
    rows.sort_by(|a, b| {
        let key = |row: &Row| {
            (
                Reverse(row.counts.score()),
                // Who dialed decides how long a connection is kept.
                row.counts.score() > 0 && !matches!(row.target, Target::Dialed { .. }),
                Reverse(row.counts.open),
                row.pid,
            )
        };
        key(a).cmp(&key(b)).then_with(|| a.target.cmp(&b.target))
    });
}

/// The rows that are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The most suspicious first.
    pub rows: Vec<Row>,
    /// How many rows are left out.
    pub omitted_rows: u64,
    /// How many sockets they have.
    pub omitted_sockets: u64,
}

impl Snapshot {
    /// Returns at most `limit` rows: those that are suspicious, with a few targets of each process
    /// and the others as one row; or `all`, as they are.
    #[must_use]
    pub fn view(&self, all: bool, limit: usize) -> View {
        let mut rows = if all {
            self.rows.clone()
        } else {
            fold(self.rows.iter().filter(|row| row.counts.score() > 0))
        };
        let shown = rows.len().min(limit);
        let omitted = rows.split_off(shown);
        View {
            rows,
            omitted_rows: u64::try_from(omitted.len()).unwrap_or(u64::MAX),
            omitted_sockets: omitted.iter().map(|row| row.counts.open).sum(),
        }
    }
}

/// Makes one row of those of a process that follow its first few.
fn fold<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<Row> {
    let mut by_process: HashMap<u32, Vec<&Row>> = HashMap::new();
    for row in rows {
        by_process.entry(row.pid).or_default().push(row);
    }
    let mut folded = Vec::new();
    for rows in by_process.into_values() {
        // One row more takes no more room than the row that says so.
        if rows.len() <= TARGETS_SHOWN + 1 {
            folded.extend(rows.into_iter().cloned());
            continue;
        }
        let (shown, rest) = rows.split_at(TARGETS_SHOWN);
        folded.extend(shown.iter().copied().cloned());
        let Some(mut several) = rest.first().map(|row| (*row).clone()) else {
            continue;
        };
        several.target = Target::Several(u64::try_from(rest.len()).unwrap_or(u64::MAX));
        several.counts = Counts::default();
        for row in rest {
            several.counts.add(&row.counts);
        }
        folded.push(several);
    }
    sort(&mut folded);
    folded
}
