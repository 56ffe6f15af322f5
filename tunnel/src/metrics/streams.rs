//! The metrics of one stream.

use std::sync::Arc;
use std::time::Duration;

use tunnel_proto::mux::{By, Ending, Reason};

use crate::metrics::Metrics;
use crate::metrics::remotedialer::Added;

/// The metrics of one stream. Dropping it counts the end of the stream.
#[derive(Debug, Default)]
pub struct StreamMetrics {
    metrics: Option<Arc<Metrics>>,
    added: Option<Added>,
}

impl StreamMetrics {
    pub(super) const fn new(metrics: Arc<Metrics>, added: Option<Added>) -> Self {
        Self {
            metrics: Some(metrics),
            added,
        }
    }

    /// Records how long the stream took to be accepted.
    pub fn accepted(&self, after: Duration) {
        if let Some(metrics) = &self.metrics {
            metrics.lifetimes.stream_accepted(after);
        }
    }

    /// Counts the end of the stream.
    pub fn ended(mut self, ending: Ending, age: Duration) {
        self.count_out(ending, Some(age));
    }

    fn count_out(&mut self, ending: Ending, age: Option<Duration>) {
        if let Some(metrics) = self.metrics.take() {
            metrics.streams.dec();
            metrics.lifetimes.stream_ended(ending, age);
        }
        if let Some(added) = self.added.take() {
            added.removed();
        }
    }
}

impl Drop for StreamMetrics {
    fn drop(&mut self) {
        self.count_out(Ending::Reset(Reason::SessionOver, By::Us), None);
    }
}
