//! What the kernel side counts and measures.

use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use tracer_abi::counter::Counter;
use tracer_abi::histogram::Histogram;
use tracer_abi::release_key::ReleaseKey;
use tracer_core::counters::Counters;
use zerocopy::transmute;

use super::error::{ProbeError, map_error};

/// The maps of the counts.
pub struct Counts {
    counters: PerCpuArray<MapData, u64>,
    histograms: PerCpuArray<MapData, u64>,
    releases: PerCpuHashMap<MapData, [u8; size_of::<ReleaseKey>()], u64>,
}

impl Counts {
    pub(super) fn new(counters: Map, histograms: Map, releases: Map) -> Result<Self, ProbeError> {
        Ok(Self {
            counters: PerCpuArray::try_from(counters).map_err(map_error("COUNTERS"))?,
            histograms: PerCpuArray::try_from(histograms).map_err(map_error("HISTOGRAMS"))?,
            releases: PerCpuHashMap::try_from(releases).map_err(map_error("RELEASES"))?,
        })
    }

    /// Reads the counters, summed over the CPUs: since the audit began, or its programs were pinned.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters, ProbeError> {
        let mut counters = Counters::default();
        for slot in 0..Counter::COUNT {
            counters.set(
                slot,
                sum(&self.counters, slot).map_err(map_error("COUNTERS"))?,
            );
        }
        Ok(counters)
    }

    /// Sets all that the kernel side has counted to zero.
    ///
    /// # Errors
    ///
    /// When a map cannot be written.
    pub(super) fn reset(&mut self) -> Result<(), ProbeError> {
        reset(&mut self.counters).map_err(map_error("COUNTERS"))?;
        reset(&mut self.histograms).map_err(map_error("HISTOGRAMS"))?;
        let counted = self.releases.keys().collect::<Result<Vec<_>, _>>();
        for key in counted.map_err(map_error("RELEASES"))? {
            self.releases.remove(&key).map_err(map_error("RELEASES"))?;
        }
        Ok(())
    }

    /// Calls `take` with the number of releases that no record told of, by target or listener.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn releases(&self, mut take: impl FnMut(&ReleaseKey, u64)) -> Result<(), ProbeError> {
        for entry in self.releases.iter() {
            let (key, per_cpu) = entry.map_err(map_error("RELEASES"))?;
            take(&transmute!(key), per_cpu.iter().sum());
        }
        Ok(())
    }

    /// Reads a histogram, in the same way.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn histogram(&self, histogram: Histogram) -> Result<HistogramSum, ProbeError> {
        let slot = |n| {
            let slot = histogram as u32 * Histogram::SLOTS + n;
            sum(&self.histograms, slot).map_err(map_error("HISTOGRAMS"))
        };
        Ok(HistogramSum {
            buckets: (0..Histogram::BUCKETS)
                .map(slot)
                .collect::<Result<_, _>>()?,
            sum_ns: slot(Histogram::BUCKETS)?,
        })
    }
}

/// What a histogram of the kernel side has measured.
#[derive(Clone, Debug)]
pub struct HistogramSum {
    /// How many are in each bucket; see [`Histogram::BUCKETS`].
    pub buckets: Vec<u64>,
    /// The sum of all, in nanoseconds.
    pub sum_ns: u64,
}

/// Returns a slot, summed over the CPUs.
fn sum(map: &PerCpuArray<MapData, u64>, slot: u32) -> Result<u64, MapError> {
    let per_cpu = map.get(&slot, 0)?;
    // A counter may go up on one CPU and down on another.
    Ok(per_cpu
        .iter()
        .fold(0, |sum, value| sum.wrapping_add(*value)))
}

fn reset(map: &mut PerCpuArray<MapData, u64>) -> Result<(), MapError> {
    for slot in 0..map.len() {
        let zeros = PerCpuValues::try_from(vec![0; map.get(&slot, 0)?.len()])?;
        map.set(slot, zeros, 0)?;
    }
    Ok(())
}
