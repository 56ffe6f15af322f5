//! What an agent shows at its admin port.

use std::sync::Arc;

use tunnel_proto::wire::handshake::Party;

use crate::admin::{Inspect, Inspector, SessionView};
use crate::agent::{Agent, Shared};
use crate::session::Session;

impl Agent {
    /// Returns what [`Admin::inspect`](crate::admin::Admin::inspect) takes to show this agent.
    #[must_use]
    pub fn inspector(&self) -> Inspector {
        Inspector::new(Arc::<Shared>::clone(&self.shared))
    }
}

impl Inspect for Shared {
    fn not_ready_reason(&self) -> Option<String> {
        if self.over.is_cancelled() {
            return Some(format!("agent {} is draining", self.config.name));
        }
        let connected = !self.sessions.borrow().is_empty();
        let (name, server) = (&self.config.name, &self.config.server);
        (!connected).then(|| format!("agent {name} is not connected to {server}"))
    }

    fn sessions(&self, streams_max: usize) -> Vec<SessionView> {
        let mut left = streams_max;
        let sessions = self.sessions.borrow().clone();
        let shown = |(slot, session): (u8, Session)| {
            let stats = session.stats(left);
            left = left.saturating_sub(stats.sample.len());
            SessionView {
                party: Party::Server,
                name: self.config.name.clone(),
                link: Some(slot.to_string()),
                address: self.config.server.to_string(),
                stats,
            }
        };
        sessions.into_iter().map(shown).collect()
    }
}
