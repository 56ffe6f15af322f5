//! What a server shows at its admin port.

use crate::admin::{Shown, Subject};
use crate::server::agents::registry::Present;
use crate::server::shared::Shared;

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
