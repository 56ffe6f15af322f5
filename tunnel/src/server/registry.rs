//! Which agents are here. The newest session of a name is the one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::mux::Reason;
use crate::scope;
use crate::session::Session;

/// The sessions by name.
#[derive(Debug)]
pub(super) struct Registry {
    sessions_max: usize,
    agents: Mutex<HashMap<String, Entry>>,
}

/// One agent's session, and the scope that owns the tasks of its streams.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) session: Session,
    pub(super) scope: scope::Handle,
}

/// As many agents are here as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Registry {
    pub(super) fn new(sessions_max: usize) -> Self {
        Self {
            sessions_max,
            agents: Mutex::default(),
        }
    }

    /// Takes a session in. An older one of the same name ends at once.
    pub(super) fn insert(&self, name: &str, entry: Entry) -> Result<(), Full> {
        let older = {
            let mut agents = self.lock();
            if agents.len() >= self.sessions_max && !agents.contains_key(name) {
                return Err(Full);
            }
            agents.insert(name.to_owned(), entry)
        };
        if let Some(older) = older {
            older.session.end(Reason::Replaced);
        }
        Ok(())
    }

    /// Forgets a session, unless a newer one took its name.
    pub(super) fn remove(&self, name: &str, session: u64) {
        let mut agents = self.lock();
        if agents
            .get(name)
            .is_some_and(|entry| entry.session.id() == session)
        {
            agents.remove(name);
        }
    }

    /// Returns the session of this name.
    pub(super) fn find(&self, name: &str) -> Option<Entry> {
        self.lock().get(name).cloned()
    }

    /// Whether one more agent may come.
    pub(super) fn has_room(&self, name: &str) -> bool {
        let agents = self.lock();
        agents.len() < self.sessions_max || agents.contains_key(name)
    }

    /// Returns the number of tasks that all sessions own.
    pub(super) fn tasks(&self) -> usize {
        self.lock().values().map(|entry| entry.scope.tasks()).sum()
    }

    /// Returns all sessions.
    pub(super) fn sessions(&self) -> Vec<Session> {
        self.lock()
            .values()
            .map(|entry| entry.session.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
