//! What a server shows at its admin port.

use crate::admin::{Inspect, SessionView};
use crate::server::agents::registry::Present;
use crate::server::shared::Shared;

impl Inspect for Shared {
    fn not_ready_reason(&self) -> Option<String> {
        let draining = self.draining.is_cancelled();
        draining.then(|| "the server is draining".to_owned())
    }

    fn sessions(&self, streams_max: usize) -> Vec<SessionView> {
        let mut left = streams_max;
        let shown = |present: Present| {
            let stats = present.entry.session.stats(left);
            left = left.saturating_sub(stats.sample.len());
            SessionView {
                party: present.party,
                name: present.name,
                link: present.link.map(|link| link.to_string()),
                address: present.entry.from.to_string(),
                stats,
            }
        };
        self.registry.present().into_iter().map(shown).collect()
    }
}
