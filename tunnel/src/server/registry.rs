//! Which agents are here. The newest instance of a name is the one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::handshake::LinkId;
use super::links::Links;
use crate::mux::Reason;
use crate::scope;
use crate::session::Session;

/// The sessions by name.
#[derive(Debug)]
pub(super) struct Registry {
    sessions_max: usize,
    agents: Mutex<HashMap<String, Links>>,
}

/// One session of an agent, and the scope that owns the tasks of its streams.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) session: Session,
    pub(super) scope: scope::Handle,
}

/// As many sessions are here as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

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
        let replaced = {
            let mut agents = self.lock();
            if !has_room(&agents, self.sessions_max, name, link) {
                return Err(Full);
            }
            let links = agents.entry(name.to_owned()).or_default();
            links.insert(link, entry)
        };
        for older in replaced {
            older.session.end(Reason::Replaced);
        }
        Ok(())
    }

    /// Forgets a session, unless another took its place.
    pub(super) fn remove(&self, name: &str, session: u64) {
        let mut agents = self.lock();
        if let Some(links) = agents.get_mut(name) {
            links.remove(session);
            if links.is_empty() {
                agents.remove(name);
            }
        }
    }

    /// Returns the session of this name that the next stream is for.
    pub(super) fn find(&self, name: &str) -> Option<Entry> {
        self.lock().get_mut(name)?.pick().cloned()
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

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Links>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entries(agents: &HashMap<String, Links>) -> impl Iterator<Item = &Entry> {
    agents.values().flat_map(Links::entries)
}

fn has_room(agents: &HashMap<String, Links>, max: usize, name: &str, link: Option<LinkId>) -> bool {
    let links = agents.get(name);
    links.is_some_and(|links| links.has_place(link)) || entries(agents).count() < max
}
