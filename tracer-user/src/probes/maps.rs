//! The maps that user space reads or writes: taken out of the object, or found pinned.

use aya::maps::Map;

use super::pinned::{PinDir, PinError};

/// The maps that user space reads or writes.
pub(super) struct Maps {
    pub(super) events: Map,
    pub(super) violations: Map,
    pub(super) stacks: Map,
    pub(super) counters: Map,
    pub(super) histograms: Map,
    pub(super) ends: Map,
    pub(super) targets: Map,
    pub(super) releases: Map,
}

impl Maps {
    pub(super) fn take<E>(mut map: impl FnMut(&'static str) -> Result<Map, E>) -> Result<Self, E> {
        Ok(Self {
            events: map("EVENTS")?,
            violations: map("VIOLATIONS")?,
            stacks: map("STACKS")?,
            counters: map("COUNTERS")?,
            histograms: map("HISTOGRAMS")?,
            ends: map("ENDS")?,
            targets: map("TARGETS")?,
            releases: map("RELEASES")?,
        })
    }

    pub(super) fn from_pins(from: &PinDir) -> Result<Self, PinError> {
        Self::take(|name| {
            let data = from.map(name)?;
            Ok(match name {
                "EVENTS" | "VIOLATIONS" | "STACKS" => Map::RingBuf(data),
                "COUNTERS" | "HISTOGRAMS" => Map::PerCpuArray(data),
                "RELEASES" => Map::PerCpuHashMap(data),
                _ => Map::HashMap(data),
            })
        })
    }

    pub(super) fn pin(&self, to: &PinDir) -> Result<(), PinError> {
        let maps = [
            ("EVENTS", &self.events),
            ("VIOLATIONS", &self.violations),
            ("STACKS", &self.stacks),
            ("COUNTERS", &self.counters),
            ("HISTOGRAMS", &self.histograms),
            ("ENDS", &self.ends),
            ("TARGETS", &self.targets),
            ("RELEASES", &self.releases),
        ];
        maps.into_iter()
            .try_for_each(|(name, map)| to.pin_map(name, map))
    }
}
