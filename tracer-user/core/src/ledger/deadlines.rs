//! When the witness should walk next, and why.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tracer_abi::annotation::Owner;

/// How many deadlines are kept. If more come, a walk is made at the first one that was dropped; it
/// finds which rules are running.
pub(super) const DEADLINES_MAX: usize = 1 << 18;

/// Why a socket may be overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    /// An owner ended; its sockets may still be open.
    Owner(Owner),
    /// TCP is done with a socket.
    Socket(u64),
    /// A socket was created without an owner.
    Unbound(u64),
    /// A process annotated for the first time; it may have sockets without an owner.
    Annotator,
    /// A connect failed before a SYN was sent: no record names the socket.
    Dead,
}

/// The deadlines, in order of time. Their number is bounded.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    heap: BinaryHeap<Reverse<(u64, Deadline)>>,
    /// The first deadline that did not fit.
    dropped_ns: Option<u64>,
}

impl Deadlines {
    /// Adds a deadline. Returns `false` when there is no room for it: then only its time is kept.
    pub(super) fn push(&mut self, at_ns: u64, deadline: Deadline) -> bool {
        let fits = self.heap.len() < DEADLINES_MAX;
        if fits {
            self.heap.push(Reverse((at_ns, deadline)));
        } else {
            let first_ns = self.dropped_ns.unwrap_or(at_ns);
            self.dropped_ns = Some(first_ns.min(at_ns));
        }
        fits
    }

    /// Removes the next deadline that is before `now_ns`.
    pub(super) fn pop_passed(&mut self, now_ns: u64) -> Option<(u64, Deadline)> {
        let Reverse((at_ns, deadline)) = self.heap.peek().copied()?;
        (at_ns < now_ns).then(|| {
            self.heap.pop();
            (at_ns, deadline)
        })
    }

    /// Whether a deadline that did not fit has passed. It is forgotten then.
    pub(super) fn take_dropped(&mut self, now_ns: u64) -> bool {
        let passed = self.dropped_ns.is_some_and(|at_ns| at_ns < now_ns);
        if passed {
            self.dropped_ns = None;
        }
        passed
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}
