//! The connected agents, the peers that dialed us and the peers that we dialed. The newest instance
//! of an agent replaces older ones.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tunnel_proto::mux::{OpenError, Reason};
use tunnel_proto::target::Target;
use tunnel_proto::wire::handshake::{LinkId, Party};

use crate::io::scope;
use crate::server::agents::links::{Entry, Links};
use crate::server::auth::access::Credential;
use crate::session::{Opening, Session};

/// The sessions by name.
#[derive(Debug)]
pub(crate) struct Registry {
    sessions_max: usize,
    /// The names of this server and its peers. rancher/remotedialer announces its peers as if they
    /// were agents. Streams sent to such a name would go in circles.
    servers: HashSet<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    agents: HashMap<String, Links>,
    /// Peers that dialed us. Their agents are reached through these sessions.
    peers: HashMap<String, Entry>,
    /// Peers that we dialed. Our agents are announced to them.
    listeners: HashMap<String, Entry>,
}

/// A session, with the name of its other end.
#[derive(Debug)]
pub(crate) struct Present {
    pub(crate) party: Party,
    pub(crate) name: String,
    pub(crate) link: Option<LinkId>,
    pub(crate) entry: Entry,
}

/// The session through which streams to an agent are opened.
#[derive(Debug)]
pub(crate) struct Route {
    entry: Entry,
    /// The agent, if the session is a peer's.
    through: Option<String>,
}

impl Route {
    /// Starts opening a stream to `target`.
    pub(crate) fn open(&self, target: &Target) -> Result<Opening, OpenError> {
        match &self.through {
            None => self.entry.session.open(target),
            Some(agent) => self.entry.session.open_through(agent, target),
        }
    }

    /// Returns the scope that owns the tasks of the streams.
    pub(crate) const fn scope(&self) -> &scope::Handle {
        &self.entry.scope
    }
}

/// The limit on sessions is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Registry {
    pub(crate) fn new(sessions_max: usize, servers: HashSet<String>) -> Self {
        Self {
            sessions_max,
            servers,
            state: Mutex::default(),
        }
    }

    /// Adds a session. The sessions that it replaces end at once. Peers are told of new agents.
    pub(crate) fn insert(
        &self,
        party: Party,
        name: &str,
        link: Option<LinkId>,
        entry: Entry,
    ) -> Result<(), Full> {
        let replaced = {
            let mut state = self.lock();
            match party {
                Party::Agent => {
                    if !state.has_room(name, link, self.sessions_max) {
                        return Err(Full);
                    }
                    state.announce(name, &entry.session, true);
                    let links = state.agents.entry(name.to_owned()).or_default();
                    let replaced = links.insert(link, entry);
                    for older in &replaced {
                        state.announce(name, &older.session, false);
                    }
                    replaced
                }
                Party::Peer => Vec::from_iter(state.peers.insert(name.to_owned(), entry)),
                Party::Server => {
                    for (name, agent) in state.agents() {
                        entry.session.announce(name, key(&agent.session), true);
                    }
                    Vec::from_iter(state.listeners.insert(name.to_owned(), entry))
                }
            }
        };
        for older in replaced {
            older.session.end(Reason::Replaced);
        }
        Ok(())
    }

    /// Removes a session, unless another one has replaced it.
    pub(crate) fn remove(&self, party: Party, name: &str, session: u64) {
        let mut state = self.lock();
        match party {
            Party::Agent => {
                if let Some(entry) = state.remove_link(name, session) {
                    state.announce(name, &entry.session, false);
                }
            }
            Party::Peer => remove(&mut state.peers, name, session),
            Party::Server => remove(&mut state.listeners, name, session),
        }
    }

    /// Tells the peers that all agents of this server are gone.
    pub(crate) fn withdraw(&self) {
        let state = self.lock();
        for (name, agent) in state.agents() {
            state.announce(name, &agent.session, false);
        }
    }

    /// Returns the route to an agent: its own session if it is connected here, else that of a peer
    /// which has it.
    pub(crate) fn find(&self, name: &str) -> Option<Route> {
        let mut state = self.lock();
        let own = state.pick(name);
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

    /// Returns the names of the connected agents, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().agents.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Returns the route to an agent that is connected here.
    pub(crate) fn own(&self, name: &str) -> Option<Route> {
        let entry = self.lock().pick(name)?;
        Some(Route {
            entry,
            through: None,
        })
    }

    /// Whether the limit allows one more session of an agent.
    pub(crate) fn has_room(&self, name: &str, link: Option<LinkId>) -> bool {
        self.lock().has_room(name, link, self.sessions_max)
    }

    /// Returns the number of tasks that all sessions own.
    pub(crate) fn tasks(&self) -> usize {
        let state = self.lock();
        state.entries().map(|entry| entry.scope.tasks()).sum()
    }

    /// Ends the sessions of agents and peers whose credential is no longer valid, and returns how
    /// many.
    pub(crate) fn revoke(&self, is_good: impl Fn(Party, &str, Credential) -> bool) -> usize {
        let revoked: Vec<(Party, String, Session)> = {
            let state = self.lock();
            let agents = state.agents().map(|(name, it)| (Party::Agent, name, it));
            let peers = state.peers.iter().map(|(name, it)| (Party::Peer, name, it));
            let revoked = agents.chain(peers).filter(|(party, name, entry)| {
                let credential = entry.credential;
                credential.is_some_and(|credential| !is_good(*party, name, credential))
            });
            revoked
                .map(|(party, name, entry)| (party, name.clone(), entry.session.clone()))
                .collect()
        };
        for (party, name, session) in &revoked {
            tracing::info!(?party, name, session = session.id(), "the token is revoked");
            session.end(Reason::Denied);
        }
        revoked.len()
    }

    /// Returns all sessions, sorted by name.
    pub(crate) fn present(&self) -> Vec<Present> {
        let state = self.lock();
        let present = |party, name: &String, link, entry: &Entry| Present {
            party,
            name: name.clone(),
            link,
            entry: entry.clone(),
        };
        let agents = state.agents.iter().flat_map(|(name, links)| {
            let links = links.named();
            links.map(move |(link, entry)| present(Party::Agent, name, link, entry))
        });
        let peers = state.peers.iter().map(|(name, it)| (Party::Peer, name, it));
        let listeners = state.listeners.iter();
        let listeners = listeners.map(|(name, it)| (Party::Server, name, it));
        let others = peers.chain(listeners);
        let others = others.map(|(party, name, entry)| present(party, name, None, entry));
        let mut all: Vec<_> = agents.chain(others).collect();
        drop(state);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Returns all sessions.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        let state = self.lock();
        state.entries().map(|entry| entry.session.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the session for an agent's next stream.
    fn pick(&mut self, name: &str) -> Option<Entry> {
        self.agents.get_mut(name)?.pick().cloned()
    }

    fn remove_link(&mut self, name: &str, session: u64) -> Option<Entry> {
        let links = self.agents.get_mut(name)?;
        let entry = links.remove(session);
        if links.is_empty() {
            self.agents.remove(name);
        }
        entry
    }

    fn has_room(&self, name: &str, link: Option<LinkId>, max: usize) -> bool {
        let links = self.agents.get(name);
        links.is_some_and(|links| links.would_replace(link)) || self.agents().count() < max
    }

    /// Returns all sessions of agents, each with its agent's name.
    fn agents(&self) -> impl Iterator<Item = (&String, &Entry)> {
        let agents = self.agents.iter();
        agents.flat_map(|(name, links)| links.entries().map(move |entry| (name, entry)))
    }

    fn announce(&self, name: &str, session: &Session, present: bool) {
        for listener in self.listeners.values() {
            listener.session.announce(name, key(session), present);
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let peers = self.peers.values().chain(self.listeners.values());
        self.agents().map(|(_, entry)| entry).chain(peers)
    }
}

/// Removes the session of a peer, unless another one has replaced it.
fn remove(peers: &mut HashMap<String, Entry>, name: &str, session: u64) {
    let entry = peers.get(name);
    if entry.is_some_and(|entry| entry.session.id() == session) {
        peers.remove(name);
    }
}

/// Returns the number that identifies a session to peers. rancher/remotedialer reads it as a signed
/// 64-bit integer.
fn key(session: &Session) -> i64 {
    (session.id() >> 1).cast_signed()
}
