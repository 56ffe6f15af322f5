//! What the ledger keeps of one socket.

use tracer_abi::annotation::Owner;
use tracer_abi::facts::{AF_INET, AF_INET6, fact};
use tracer_abi::record::Brief;

use super::payload::Payload;
use super::stall::Stall;

/// One socket, from its creation to its release.
///
/// ```text
///   socket(2) ──────────────► HELD ───────── last fd gone ─────────► released
///                              ▲  ╲                                     ▲
///   handshake ──► WAITING ─────┘   ╲ BIND, END, CLOSE_WAIT, CLOSE       │
///                    │   accept      only start the clock of a rule     │
///                    │   (first sight of an fd)                         │
///                    └──────── listener gone: never had an fd           │
///                                       lost record: the witness ───────┘
/// ```
/// WAITING: in a listener's backlog, as far as is known. HELD: a file descriptor was seen.
#[derive(Debug)]
pub(super) struct Lifetime {
    pub(super) born_ns: u64,
    /// Owner, role and time of the current BIND.
    pub(super) bound: Option<(Owner, u16, u64)>,
    pub(super) held: bool,
    /// TCP fell to CLOSE.
    pub(super) dead: bool,
    /// Of a family without create and release hooks, or made in another cgroup: only the witness
    /// tells whether it is open.
    pub(super) unhooked: bool,
    /// It is adopted, and was accepted by a listener that is known.
    pub(super) accepted: bool,
    /// The witness met it before any record of it came.
    pub(super) unannounced: bool,
    /// The last walk that met it.
    pub(super) walk: u32,
    /// The deadline that the last walk added for it.
    pub(super) deadline_ns: u64,
    /// The last known byte counters, and when they last changed.
    pub(super) last_payload: Option<(Payload, u64)>,
    /// The longest time without a byte that a byte ended, in nanoseconds.
    pub(super) longest_silence_ns: u64,
    /// What waits without progress.
    pub(super) stall: Stall,
}

impl Lifetime {
    pub(super) fn new(brief: &Brief) -> Self {
        Self {
            born_ns: brief.born_ns,
            bound: None,
            held: brief.flags & fact::HELD != 0,
            dead: false,
            unhooked: !matches!(brief.family, AF_INET | AF_INET6)
                || brief.flags & fact::FOREIGN != 0,
            accepted: false,
            unannounced: false,
            walk: 0,
            deadline_ns: 0,
            last_payload: None,
            longest_silence_ns: 0,
            stall: Stall::default(),
        }
    }
}
