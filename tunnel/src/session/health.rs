//! Whether a session is fit for new streams.

use std::time::Duration;

use tunnel_proto::replicas::{Health, Load};

use crate::session::Session;

impl Session {
    /// Returns how much speaks against giving this session the next stream.
    pub(crate) fn load(&self) -> Load {
        let now = self.shared.clock.now();
        let state = self.shared.lock();
        Load {
            health: state.mux.health(now),
            streams: state.mux.streams(),
        }
    }

    /// Returns whether a new stream can be expected to be answered.
    pub(crate) fn health(&self) -> Health {
        let now = self.shared.clock.now();
        self.shared.lock().mux.health(now)
    }

    /// Asks the peer for a sign of life if it has been silent for a while.
    pub(crate) fn probe(&self) {
        let now = self.shared.clock.now();
        self.shared.with(|mux, _| mux.probe(now));
    }

    /// Returns how long the session has lived.
    pub(crate) fn age(&self) -> Duration {
        let now = self.shared.clock.now();
        now.saturating_sub(self.shared.began)
    }
}
