//! Who holds sockets that nobody uses: looks at every open descriptor of the machine, compared.
//!
//! One [`Look`] tells states and numbers. Whether bytes move and whether a number grows takes
//! another one a while later: [`Top`] compares each look with those before it.

mod look;
mod row;
mod target;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

pub use look::Look;
use look::{Counters, SocketKey};
pub use row::{Counts, Row, View};
pub use target::Target;
use target::Targets;

use crate::ledger::{TCP_CLOSE_WAIT, TCP_SYN_SENT};

/// How long no byte must have moved until a connection counts as idle.
pub const IDLE_NS: u64 = 60_000_000_000;

/// The looks so far.
#[derive(Debug, Default)]
pub struct Top {
    looks: u64,
    first_ns: u64,
    last_ns: u64,
    sockets: HashMap<SocketKey, Past>,
    /// Open sockets of each row at the first look and at the last one.
    first: HashMap<RowKey, u64>,
    last: HashMap<RowKey, u64>,
}

/// What was known of a socket at the last look.
#[derive(Clone, Copy, Debug)]
struct Past {
    is_close_wait: bool,
    is_dead: bool,
    counters: Option<Counters>,
    /// The first look with these counters.
    since_ns: u64,
}

/// A process and a target of it.
type RowKey = (u32, Target);

/// What the last look shows next to those before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// How many looks there were.
    pub looks: u64,
    /// The time between the last two looks.
    pub interval_ns: u64,
    /// The time since the first look.
    pub watched_ns: u64,
    /// Internet sockets, once for each process that holds them.
    pub sockets: u64,
    /// Descriptors of sockets of other families.
    pub other_families: u64,
    /// Descriptors of internet sockets that were too many to be looked at.
    pub unlisted: u64,
    /// Processes that hold an internet socket.
    pub processes: u64,
    /// Every process and target, the most suspicious first.
    pub rows: Vec<Row>,
}

impl Snapshot {
    /// Whether the looks have gone on for [`IDLE_NS`].
    #[must_use]
    pub const fn knows_idle(&self) -> bool {
        self.watched_ns >= IDLE_NS
    }
}

impl Top {
    /// Adds a look; `namespace_of` tells the network namespace of a process. Returns what it shows
    /// next to those before it: after the first, nothing is quiet and nothing grows.
    pub fn add(&mut self, look: Look, namespace_of: impl FnMut(u32) -> u64) -> Snapshot {
        let now_ns = look.at_ns();
        if self.looks == 0 {
            self.first_ns = now_ns;
        }
        let watched_ns = now_ns.saturating_sub(self.first_ns);
        let knows_idle = watched_ns >= IDLE_NS;
        let targets = Targets::new(&look, namespace_of);
        let mut rows: HashMap<RowKey, Row> = HashMap::new();
        let mut sockets = HashMap::with_capacity(look.sockets().len());
        for (key, seen) in look.sockets() {
            let past = self.sockets.get(key);
            let target = targets.of(key, seen);
            let row = rows
                .entry((key.pid, target))
                .or_insert_with(|| Row::new(key.pid, seen.comm, target));
            let present = Past {
                is_close_wait: seen.is_tcp() && seen.state == TCP_CLOSE_WAIT,
                is_dead: seen.is_dead(),
                counters: seen.counters,
                since_ns: past
                    .filter(|past| past.counters == seen.counters)
                    .map_or(now_ns, |past| past.since_ns),
            };
            let is_connected = seen.counters.is_some()
                && seen.remote.port() != 0
                && !present.is_dead
                && seen.state != TCP_SYN_SENT;
            let counts = &mut row.counts;
            counts.open += 1;
            counts.close_wait += u64::from(present.is_close_wait);
            counts.dead += u64::from(present.is_dead);
            counts.quiet += u64::from(is_connected && present.since_ns < now_ns);
            if knows_idle {
                let is_idle = is_connected && now_ns - present.since_ns >= IDLE_NS;
                *counts.idle.get_or_insert(0) += u64::from(is_idle);
            }
            if let Some(past) = past {
                counts.close_wait_kept += u64::from(present.is_close_wait && past.is_close_wait);
                counts.dead_kept += u64::from(present.is_dead && past.is_dead);
            }
            sockets.insert(*key, present);
        }
        let open: HashMap<RowKey, u64> = rows
            .iter()
            .map(|(key, row)| (*key, row.counts.open))
            .collect();
        if self.looks == 0 {
            self.first.clone_from(&open);
            self.last.clone_from(&open);
            self.last_ns = now_ns;
        }
        let snapshot = Snapshot {
            looks: self.looks + 1,
            interval_ns: now_ns.saturating_sub(self.last_ns),
            watched_ns,
            sockets: look.sockets().len().try_into().unwrap_or(u64::MAX),
            other_families: look.other_families(),
            unlisted: look.unlisted(),
            processes: processes(&look),
            rows: self.grown(rows),
        };
        self.last = open;
        self.sockets = sockets;
        self.last_ns = now_ns;
        self.looks += 1;
        snapshot
    }

    /// Returns the rows with their growth, in order.
    fn grown(&self, rows: HashMap<RowKey, Row>) -> Vec<Row> {
        let growth = |earlier: &HashMap<RowKey, u64>, key: &RowKey, open: u64| {
            open.checked_signed_diff(earlier.get(key).copied().unwrap_or(0))
                .unwrap_or(i64::MAX)
        };
        let mut rows: Vec<Row> = rows
            .into_iter()
            .map(|(key, mut row)| {
                let open = row.counts.open;
                row.counts.growth = growth(&self.last, &key, open);
                row.counts.growth_since_start = growth(&self.first, &key, open);
                row
            })
            .collect();
        row::sort(&mut rows);
        rows
    }
}

fn processes(look: &Look) -> u64 {
    let pids: HashSet<u32> = look.sockets().keys().map(|key| key.pid).collect();
    pids.len().try_into().unwrap_or(u64::MAX)
}
