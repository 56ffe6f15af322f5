//! The kernel's counters, and the equation that the verdict is based on.

use tracer_abi::counter::Counter;

/// The kernel's counters, summed over the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters([u64; Counter::COUNT as usize]);

impl Counters {
    /// Sets one slot.
    pub fn set(&mut self, slot: u32, value: u64) {
        if let Some(counter) = self.0.get_mut(slot as usize) {
            *counter = value;
        }
    }

    /// Returns one counter.
    #[must_use]
    pub fn of(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// Returns what was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counters = Self::default();
        for (to, (now, then)) in counters.0.iter_mut().zip(self.0.iter().zip(earlier.0)) {
            *to = now.saturating_sub(then);
        }
        counters
    }

    /// Sockets that must be open: `adopted + created + accepted - released`. Negative if unknown
    /// sockets were released.
    #[must_use]
    pub fn open(&self) -> i128 {
        let of = |counter| i128::from(self.of(counter));
        of(Counter::Adopted) + of(Counter::Created) + of(Counter::Accepted) - of(Counter::Released)
    }

    /// Records that found their ring full.
    #[must_use]
    pub fn lost_records(&self) -> u64 {
        self.of(Counter::RingFailures) + self.of(Counter::ViolationFailures)
    }

    /// Sockets that were never bound to an owner.
    #[must_use]
    pub fn unowned(&self) -> u64 {
        let seen = [
            Counter::Adopted,
            Counter::Created,
            Counter::Accepted,
            Counter::Unhooked,
        ]
        .into_iter()
        .map(|counter| self.of(counter))
        .sum::<u64>();
        seen.saturating_sub(self.of(Counter::Tagged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_equation_counts_what_must_be_open() {
        let mut counters = Counters::default();
        counters.set(Counter::Created as u32, 10);
        counters.set(Counter::Accepted as u32, 5);
        counters.set(Counter::Released as u32, 12);
        counters.set(Counter::Tagged as u32, 4);
        assert_eq!(counters.open(), 3);
        assert_eq!(counters.unowned(), 11);
        let mut later = counters;
        later.set(Counter::Released as u32, 16);
        assert_eq!(later.open(), -1);
        assert_eq!(later.since(&counters).of(Counter::Released), 4);
    }
}
