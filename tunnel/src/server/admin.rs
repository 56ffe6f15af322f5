//! What a server shows at its admin port, and a port that shows counters only.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Shared;
use super::registry::Present;
use crate::admin::{Admin, Config, Port, Shown, Subject};
use crate::metrics::Metrics;
use crate::scope;
use crate::socket::Listener;

/// Answers for `metrics` alone, on a listener whose address is its owner's affair; connections are tasks of `scope`. [`Admin`] can
/// tell more.
pub async fn serve(metrics: Arc<Metrics>, listener: Listener, scope: scope::Handle) {
    let config = Config::new(listener.address());
    Port::new(Admin::new(metrics), config, listener)
        .serve(scope)
        .await;
}

impl super::Config {
    /// Returns the settings of the admin port, if there is one.
    pub(super) fn admin(&self) -> Option<Config> {
        let config = |listen: SocketAddr| Config {
            public: self.admin_public,
            hosts: self.admin_hosts.clone(),
            streams_max: self.admin_streams_max,
            ..Config::new(listen)
        };
        self.metrics.map(config)
    }
}

impl Subject for Shared {
    fn unready(&self) -> Option<String> {
        let draining = self.draining.is_cancelled();
        draining.then(|| "the server is draining".to_owned())
    }

    fn sessions(&self, streams_max: usize) -> Vec<Shown> {
        let mut left = streams_max;
        let shown = |present: Present| {
            let snapshot = present.entry.session.snapshot(left);
            left = left.saturating_sub(snapshot.some.len());
            Shown {
                party: present.party,
                name: present.name,
                link: present.link.map(|link| link.to_string()),
                address: present.entry.from.to_string(),
                snapshot,
            }
        };
        self.registry.present().into_iter().map(shown).collect()
    }
}
