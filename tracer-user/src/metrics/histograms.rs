//! The kernel's histograms.

use anyhow::Result;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, Bucket, Metric, MetricFamily, MetricType};
use tracer_abi::histogram::Histogram;

use crate::audit::Audit;
use crate::probes::HistogramSum;

const FAMILIES: [(&str, &str, Histogram); 2] = [
    (
        "watertight_audit_socket_lifetime_seconds",
        "How long released sockets had lived.",
        Histogram::Lifetime,
    ),
    (
        "watertight_audit_outlive_seconds",
        "How long released sockets were open after the request that they served.",
        Histogram::Outlive,
    ),
];

/// The histograms as they were read.
pub(super) struct Histograms(Vec<(Desc, MetricFamily)>);

impl Histograms {
    /// Reads them.
    pub(super) fn read(audit: &Audit) -> Result<Self> {
        let families = FAMILIES.into_iter().map(|(name, help, histogram)| {
            let desc = Desc::new(name.to_owned(), help.to_owned(), vec![], [].into())?;
            let sum = audit.counts().histogram(histogram)?;
            Ok((desc, family(name, help, &sum)))
        });
        Ok(Self(families.collect::<Result<_>>()?))
    }
}

impl Collector for Histograms {
    fn desc(&self) -> Vec<&Desc> {
        self.0.iter().map(|(desc, _)| desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.iter().map(|(_, family)| family.clone()).collect()
    }
}

fn family(name: &str, help: &str, sum: &HistogramSum) -> MetricFamily {
    let mut histogram = proto::Histogram::default();
    let (mut count, mut bound_s) = (0, 0.001);
    let mut buckets = Vec::new();
    for inside in &sum.buckets {
        count += inside;
        let mut bucket = Bucket::default();
        bucket.set_cumulative_count(count);
        bucket.set_upper_bound(bound_s);
        buckets.push(bucket);
        bound_s *= 2.0;
    }
    // The last one has no bound.
    buckets.pop();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(count);
    #[expect(clippy::cast_precision_loss, reason = "a sum of times, for a graph")]
    histogram.set_sample_sum(sum.sum_ns as f64 / 1e9);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(vec![metric]);
    family
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, TextEncoder};

    use super::*;

    #[test]
    fn buckets_are_cumulative_and_the_last_has_no_bound() {
        let sum = HistogramSum {
            buckets: vec![1, 0, 2, 4],
            sum_ns: 1_500_000_000,
        };
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&[family("a", "b", &sum)], &mut text)
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        for line in [
            "a_bucket{le=\"0.001\"} 1",
            "a_bucket{le=\"0.002\"} 1",
            "a_bucket{le=\"0.004\"} 3",
            "a_bucket{le=\"+Inf\"} 7",
            "a_sum 1.5",
            "a_count 7",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
    }
}
