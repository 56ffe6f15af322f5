//! Logins that were refused.

use prometheus::{IntCounterVec, Registry};

use crate::metrics::counters;
use crate::metrics::labels::{LoginPort, LoginRefusal};

/// Counts refused logins by port and reason.
#[derive(Debug)]
pub(super) struct Logins(IntCounterVec);

impl Logins {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = counters(
            registry,
            "watertight_logins_refused_total",
            "Logins that were refused, by port and reason: a wrong secret, or too many of them from \
             one address.",
            &["port", "reason"],
        )?;
        for port in LoginPort::ALL {
            for reason in LoginRefusal::ALL {
                counters.with_label_values(&[port.name(), reason.name()]);
            }
        }
        Ok(Self(counters))
    }

    pub(super) fn refused(&self, port: LoginPort, reason: LoginRefusal) {
        let labels = [port.name(), reason.name()];
        self.0.with_label_values(&labels).inc();
    }
}
