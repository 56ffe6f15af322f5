//! Who is here: the agents, the peers that dialed us, and the peers that we dialed. The newest session of a name is the one.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::mux::{OpenError, Reason};
use crate::scope;
use crate::session::{Opening, Party, Session};
use crate::target::Target;

/// The sessions by name.
#[derive(Debug)]
pub(super) struct Registry {
    sessions_max: usize,
    /// The names of this server and its peers. The original announces its peers as if they were agents; whoever believes that
    /// sends streams in circles.
    servers: HashSet<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    agents: HashMap<String, Entry>,
    /// Peers that dialed us: their agents are reached through these sessions.
    peers: HashMap<String, Entry>,
    /// Peers that we dialed: our agents are announced there.
    listeners: HashMap<String, Entry>,
}

/// One session, and the scope that owns the tasks of its streams.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) session: Session,
    pub(super) scope: scope::Handle,
}

/// Where streams to an agent are opened.
#[derive(Debug)]
pub(super) struct Route {
    entry: Entry,
    /// The agent, if the session is a peer's.
    through: Option<String>,
}

impl Route {
    /// Starts to open a stream to `target`.
    pub(super) fn open(&self, target: &Target) -> Result<Opening, OpenError> {
        match &self.through {
            None => self.entry.session.open(target),
            Some(agent) => self.entry.session.open_through(agent, target),
        }
    }

    /// Returns the scope that owns the tasks of the streams.
    pub(super) const fn scope(&self) -> &scope::Handle {
        &self.entry.scope
    }
}

/// As many agents are here as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Registry {
    pub(super) fn new(sessions_max: usize, servers: HashSet<String>) -> Self {
        Self {
            sessions_max,
            servers,
            state: Mutex::default(),
        }
    }

    /// Takes a session in. An older one of the same name ends at once. Peers are told which agents are here.
    pub(super) fn insert(&self, party: Party, name: &str, entry: Entry) -> Result<(), Full> {
        let older = {
            let mut state = self.lock();
            match party {
                Party::Agent => {
                    if !state.has_room(name, self.sessions_max) {
                        return Err(Full);
                    }
                    state.announce(name, &entry.session, true);
                }
                Party::Peer => {}
                Party::Server => {
                    for (name, agent) in &state.agents {
                        entry.session.announce(name, key(&agent.session), true);
                    }
                }
            }
            let older = state.sessions(party).insert(name.to_owned(), entry);
            if let (Some(older), Party::Agent) = (&older, party) {
                state.announce(name, &older.session, false);
            }
            older
        };
        if let Some(older) = older {
            older.session.end(Reason::Replaced);
        }
        Ok(())
    }

    /// Forgets a session, unless a newer one took its name.
    pub(super) fn remove(&self, party: Party, name: &str, session: u64) {
        let mut state = self.lock();
        let sessions = state.sessions(party);
        let entry = sessions
            .get(name)
            .filter(|entry| entry.session.id() == session);
        if let Some(Entry { session, .. }) = entry.cloned() {
            sessions.remove(name);
            if party == Party::Agent {
                state.announce(name, &session, false);
            }
        }
    }

    /// Tells the peers that no agent is here any more.
    pub(super) fn withdraw(&self) {
        let state = self.lock();
        for (name, agent) in &state.agents {
            state.announce(name, &agent.session, false);
        }
    }

    /// Returns the way to the agent of this name: its own session if it is here, otherwise that of a peer that has it.
    pub(super) fn find(&self, name: &str) -> Option<Route> {
        let state = self.lock();
        let own = state.agents.get(name).cloned();
        let (entry, through) = match own {
            Some(entry) => (entry, None),
            None if self.servers.contains(name) => return None,
            None => {
                let mut peers = state.peers.values();
                let entry = peers.find(|entry| entry.session.has_client(name))?;
                (entry.clone(), Some(name.to_owned()))
            }
        };
        Some(Route { entry, through })
    }

    /// Returns the session of an agent that is here.
    pub(super) fn own(&self, name: &str) -> Option<Session> {
        let state = self.lock();
        state.agents.get(name).map(|entry| entry.session.clone())
    }

    /// Whether an agent of this name may come.
    pub(super) fn has_room(&self, name: &str) -> bool {
        self.lock().has_room(name, self.sessions_max)
    }

    /// Returns the number of tasks that all sessions own.
    pub(super) fn tasks(&self) -> usize {
        let state = self.lock();
        state.entries().map(|entry| entry.scope.tasks()).sum()
    }

    /// Returns all sessions.
    pub(super) fn sessions(&self) -> Vec<Session> {
        let state = self.lock();
        state.entries().map(|entry| entry.session.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    const fn sessions(&mut self, party: Party) -> &mut HashMap<String, Entry> {
        match party {
            Party::Agent => &mut self.agents,
            Party::Peer => &mut self.peers,
            Party::Server => &mut self.listeners,
        }
    }

    fn has_room(&self, name: &str, max: usize) -> bool {
        self.agents.len() < max || self.agents.contains_key(name)
    }

    fn announce(&self, name: &str, session: &Session, present: bool) {
        for listener in self.listeners.values() {
            listener.session.announce(name, key(session), present);
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let here = self.agents.values().chain(self.peers.values());
        here.chain(self.listeners.values())
    }
}

/// Returns the number by which peers tell the sessions of an agent apart. The original reads 64 bits with a sign.
fn key(session: &Session) -> i64 {
    (session.id() >> 1).cast_signed()
}
