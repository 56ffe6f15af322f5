//! Sessions and streams: how many began and ended, how long they lived, and how long opening them
//! took.
//!
//! At any time, what was opened minus what has ended equals the gauge.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};
use tunnel_proto::mux::{Ending, Reason};

use crate::metrics::counters;

/// The label of an orderly end.
const FINISHED: &str = "finished";

/// In seconds: from a refused port to a connection that is open for a day.
const DURATION_BUCKETS: [f64; 11] = [
    0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21_600.0, 86_400.0,
];

/// In seconds: from a target on a nearby machine to one that is dialed until the deadline.
const LATENCY_BUCKETS: [f64; 12] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0,
];

#[derive(Clone, Debug)]
pub(super) struct Lifetimes {
    pub(super) sessions_opened: IntCounter,
    sessions_ended: Endings,
    pub(super) streams_opened: IntCounter,
    streams_ended: Endings,
    stream_duration: Histogram,
    open_duration: Histogram,
    link_rtt: Histogram,
}

impl Lifetimes {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let version = Opts::new("watertight_build_info", "The version that runs; always 1.");
        let version = register(registry, IntGaugeVec::new(version, &["version"])?)?;
        version
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help)?);
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(registry, Histogram::with_opts(options)?)
        };
        Ok(Self {
            sessions_opened: counter("watertight_sessions_opened_total", "Sessions that began.")?,
            sessions_ended: Endings::new(&counters(
                registry,
                "watertight_sessions_ended_total",
                "Sessions that ended, by reason.",
                &["reason"],
            )?),
            streams_opened: counter(
                "watertight_streams_opened_total",
                "Streams that were begun, refused ones included.",
            )?,
            streams_ended: Endings::new(&counters(
                registry,
                "watertight_streams_ended_total",
                "Streams that ended, by reason: finished by both ends, or why they were reset.",
                &["reason"],
            )?),
            stream_duration: histogram(
                "watertight_stream_duration_seconds",
                "How long streams lived, from open to end.",
                &DURATION_BUCKETS,
            )?,
            open_duration: histogram(
                "watertight_open_duration_seconds",
                "How long opens took to be accepted. At the agent this is the time of its dial.",
                &LATENCY_BUCKETS,
            )?,
            link_rtt: histogram(
                "watertight_link_rtt_seconds",
                "Round-trip times of pings. A ping is sent over a link that is idle.",
                &LATENCY_BUCKETS,
            )?,
        })
    }

    pub(super) fn session_ended(&self, reason: Reason) {
        self.sessions_ended.count(Some(reason));
    }

    pub(super) fn stream_accepted(&self, after: Duration) {
        self.open_duration.observe(after.as_secs_f64());
    }

    pub(super) fn stream_ended(&self, ending: Ending, age: Option<Duration>) {
        self.streams_ended.count(match ending {
            Ending::Finished => None,
            Ending::Reset(reason, _) => Some(reason),
        });
        if let Some(age) = age {
            self.stream_duration.observe(age.as_secs_f64());
        }
    }

    pub(super) fn pong(&self, after: Duration) {
        self.link_rtt.observe(after.as_secs_f64());
    }
}

/// One counter for each way to end, looked up once.
#[derive(Clone, Debug)]
struct Endings {
    finished: IntCounter,
    reset: [IntCounter; Reason::ALL.len()],
}

impl Endings {
    fn new(counters: &IntCounterVec) -> Self {
        let counter = |name: &str| counters.with_label_values(&[name]);
        Self {
            finished: counter(FINISHED),
            reset: Reason::ALL.map(|reason| counter(reason.name())),
        }
    }

    fn count(&self, reason: Option<Reason>) {
        let counter = match reason {
            None => Some(&self.finished),
            Some(reason) => self.reset.get(usize::from(reason.to_wire())),
        };
        if let Some(counter) = counter {
            counter.inc();
        }
    }
}

fn register<T: Collector + Clone + 'static>(
    registry: &Registry,
    metric: T,
) -> Result<T, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
