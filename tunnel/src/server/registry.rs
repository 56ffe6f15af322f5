//! Which agents are here, and by which sessions. Those of one instance are used side by side; the newest instance of a name is the one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::handshake::LinkId;
use crate::mux::Reason;
use crate::scope;
use crate::session::Session;

/// The sessions by name.
#[derive(Debug)]
pub(super) struct Registry {
    sessions_max: usize,
    agents: Mutex<HashMap<String, Agent>>,
}

/// The sessions of one instance of an agent; there is at least one.
#[derive(Debug, Default)]
struct Agent {
    links: Vec<(Option<LinkId>, Entry)>,
    /// Where the next search begins, so that sessions of equal load take turns.
    turn: usize,
}

/// One session, and the scope that owns the tasks of its streams.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) session: Session,
    pub(super) scope: scope::Handle,
}

/// As many sessions are here as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Agent {
    /// Returns the session with the fewest streams. One whose answer to a ping is overdue comes after all others, so
    /// that a link that is dead and not known to be gets no stream that another could serve.
    fn pick(&mut self) -> Option<Entry> {
        self.turn = self.turn.wrapping_add(1);
        let from = self.turn.checked_rem(self.links.len())?;
        let (earlier, later) = self.links.split_at_checked(from)?;
        let (_, entry) = later
            .iter()
            .chain(earlier)
            .min_by_key(|(_, entry)| entry.session.burden())?;
        Some(entry.clone())
    }
}

/// Whether a session by `new` takes the place of one by `old`: it is of another instance, or the same link once more.
fn replaces(new: Option<LinkId>, old: Option<LinkId>) -> bool {
    match (new, old) {
        (Some(new), Some(old)) => new.instance != old.instance || new.slot == old.slot,
        (None, _) | (_, None) => true,
    }
}

impl Registry {
    pub(super) fn new(sessions_max: usize) -> Self {
        Self {
            sessions_max,
            agents: Mutex::default(),
        }
    }

    /// Takes a session in. Those whose place it takes end at once.
    pub(super) fn insert(
        &self,
        name: &str,
        link: Option<LinkId>,
        entry: Entry,
    ) -> Result<(), Full> {
        let mut agents = self.lock();
        if !has_room(&agents, self.sessions_max, name, link) {
            return Err(Full);
        }
        let agent = agents.entry(name.to_owned()).or_default();
        let replaced: Vec<_> = agent
            .links
            .extract_if(.., |(old, _)| replaces(link, *old))
            .collect();
        agent.links.push((link, entry));
        drop(agents);
        for (_, older) in replaced {
            older.session.end(Reason::Replaced);
        }
        Ok(())
    }

    /// Forgets a session, unless another took its place.
    pub(super) fn remove(&self, name: &str, session: u64) {
        let mut agents = self.lock();
        if let Some(agent) = agents.get_mut(name) {
            agent
                .links
                .retain(|(_, entry)| entry.session.id() != session);
            if agent.links.is_empty() {
                agents.remove(name);
            }
        }
    }

    /// Returns the session of this name that the next stream is for.
    pub(super) fn find(&self, name: &str) -> Option<Entry> {
        self.lock().get_mut(name)?.pick()
    }

    /// Whether one more session may come.
    pub(super) fn has_room(&self, name: &str, link: Option<LinkId>) -> bool {
        has_room(&self.lock(), self.sessions_max, name, link)
    }

    /// Returns the number of tasks that all sessions own.
    pub(super) fn tasks(&self) -> usize {
        let agents = self.lock();
        entries(&agents).map(|entry| entry.scope.tasks()).sum()
    }

    /// Returns all sessions.
    pub(super) fn sessions(&self) -> Vec<Session> {
        let agents = self.lock();
        entries(&agents)
            .map(|entry| entry.session.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Agent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entries(agents: &HashMap<String, Agent>) -> impl Iterator<Item = &Entry> {
    let links = agents.values().flat_map(|agent| &agent.links);
    links.map(|(_, entry)| entry)
}

fn has_room(agents: &HashMap<String, Agent>, max: usize, name: &str, link: Option<LinkId>) -> bool {
    let takes_a_place = agents
        .get(name)
        .is_some_and(|agent| agent.links.iter().any(|(old, _)| replaces(link, *old)));
    takes_a_place || entries(agents).count() < max
}
