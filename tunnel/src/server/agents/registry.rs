//! The connected agents, the peers that dialed us and the peers that we dialed. Several agents may
//! use one name: [`Replicas`] says what they do.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tunnel_proto::mux::{OpenError, Reason};
use tunnel_proto::replicas::{Flap, Flapping, Refusal, Replicas, Sessions, Terms};
use tunnel_proto::target::Target;
use tunnel_proto::wire::handshake::{LinkId, Party};

use crate::io::clock::Clock;
use crate::io::scope;
use crate::metrics::Metrics;
use crate::server::agents::entry::Entry;
use crate::server::auth::access::Credential;
use crate::session::{Opening, Session};

/// The sessions by name.
#[derive(Debug)]
pub(crate) struct Registry {
    sessions_max: usize,
    /// The names of this server and its peers. rancher/remotedialer announces its peers as if they
    /// were agents. Streams sent to such a name would go in circles.
    servers: HashSet<String>,
    clock: Clock,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    agents: HashMap<String, Agent>,
    /// Names whose sessions ended soon a short while ago.
    flapping: HashMap<String, Flapping>,
    /// Peers that dialed us. Their agents are reached through these sessions.
    peers: HashMap<String, Entry>,
    /// Peers that we dialed. Our agents are announced to them.
    listeners: HashMap<String, Entry>,
}

/// The sessions of one name.
#[derive(Debug)]
struct Agent {
    sessions: Sessions<Entry>,
    /// The number under which peers know the name. It stays the same while there is any session, so
    /// that peers are told of the name once.
    key: i64,
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
#[derive(Clone, Debug)]
pub(crate) struct Route {
    entry: Entry,
    /// The agent, if the session is a peer's.
    through: Option<String>,
    /// The agent has further sessions here that were not tried.
    has_others: bool,
}

impl Route {
    fn direct((entry, has_others): (Entry, bool)) -> Self {
        Self {
            entry,
            through: None,
            has_others,
        }
    }

    /// Returns the session.
    pub(crate) const fn session(&self) -> &Session {
        &self.entry.session
    }

    /// Whether another session could serve instead.
    pub(crate) const fn has_others(&self) -> bool {
        self.has_others
    }

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

/// Why a session of an agent is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    #[error("the server has as many links as its configuration allows")]
    Sessions,
    #[error(transparent)]
    Name(#[from] Refusal),
}

impl NotTaken {
    /// Returns the limit that is reached, if any is.
    pub(crate) const fn limit(self) -> Option<&'static str> {
        match self {
            Self::Sessions => Some("sessions"),
            Self::Name(Refusal::Full) => Some("replicas"),
            Self::Name(Refusal::Taken) => None,
        }
    }
}

impl Registry {
    pub(crate) fn new(
        sessions_max: usize,
        servers: HashSet<String>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            sessions_max,
            servers,
            clock,
            metrics,
            state: Mutex::default(),
        }
    }

    /// Whether one more session of an agent may come.
    ///
    /// # Errors
    ///
    /// [`NotTaken`].
    pub(crate) fn check(
        &self,
        name: &str,
        link: Option<LinkId>,
        terms: Terms,
    ) -> Result<(), NotTaken> {
        let state = self.lock();
        let checked = state.check(name, link, terms, self.sessions_max);
        if checked.is_err()
            && let Some(agent) = state.agents.get(name)
        {
            // If they are dead, the newcomer is taken when it tries again.
            agent.sessions.iter().for_each(|(_, it)| it.session.probe());
        }
        checked
    }

    /// Adds a session of an agent. The sessions that it replaces end at once. Peers are told of a
    /// new name.
    ///
    /// # Errors
    ///
    /// [`NotTaken`].
    pub(crate) fn insert_agent(
        &self,
        name: &str,
        link: Option<LinkId>,
        entry: Entry,
        terms: Terms,
    ) -> Result<(), NotTaken> {
        let replaced = {
            let mut state = self.lock();
            state.check(name, link, terms, self.sessions_max)?;
            if !state.agents.contains_key(name) {
                let key = key(&entry.session);
                state.announce(name, key, true);
                let sessions = Sessions::default();
                state
                    .agents
                    .insert(name.to_owned(), Agent { sessions, key });
            }
            let Some(agent) = state.agents.get_mut(name) else {
                return Err(NotTaken::Sessions);
            };
            let sessions = &mut agent.sessions;
            let replaced = sessions.insert(link, entry, terms, |it| it.session.health())?;
            self.metrics.set_agent_sessions(name, sessions.len());
            for older in &replaced {
                self.count_end(&mut state, name, older);
            }
            replaced
        };
        for older in replaced {
            older.session.end(Reason::Replaced);
        }
        Ok(())
    }

    /// Adds the session of a peer that dialed us. The one that it replaces ends at once.
    pub(crate) fn insert_peer(&self, name: &str, entry: Entry) {
        let replaced = self.lock().peers.insert(name.to_owned(), entry);
        if let Some(older) = replaced {
            older.session.end(Reason::Replaced);
        }
    }

    /// Adds the session of a peer that we dialed, and tells it of our agents. The one that it
    /// replaces ends at once.
    pub(crate) fn insert_listener(&self, name: &str, entry: Entry) {
        let replaced = {
            let mut state = self.lock();
            for (name, agent) in &state.agents {
                entry.session.announce(name, agent.key, true);
            }
            state.listeners.insert(name.to_owned(), entry)
        };
        if let Some(older) = replaced {
            older.session.end(Reason::Replaced);
        }
    }

    /// Removes a session, unless another one has replaced it.
    pub(crate) fn remove(&self, party: Party, name: &str, session: u64) {
        let mut state = self.lock();
        match party {
            Party::Agent => self.remove_agent(&mut state, name, session),
            Party::Peer => remove(&mut state.peers, name, session),
            Party::Server => remove(&mut state.listeners, name, session),
        }
    }

    fn remove_agent(&self, state: &mut State, name: &str, session: u64) {
        let Some(agent) = state.agents.get_mut(name) else {
            return;
        };
        let removed = agent.sessions.remove(|it| it.session.id() == session);
        let (left, key) = (agent.sessions.len(), agent.key);
        let Some((_, entry)) = removed else {
            return;
        };
        self.metrics.set_agent_sessions(name, left);
        if left == 0 {
            state.agents.remove(name);
            state.announce(name, key, false);
        }
        self.count_end(state, name, &entry);
    }

    /// Counts the end of an agent's session, and warns if the name flaps.
    fn count_end(&self, state: &mut State, name: &str, entry: &Entry) {
        // The other links of an instance mostly share the fate of its first.
        if !entry.is_first {
            return;
        }
        let now = self.clock.now();
        state.flapping.retain(|_, flapping| !flapping.is_over(now));
        if state.flapping.len() >= self.sessions_max && !state.flapping.contains_key(name) {
            return;
        }
        let flapping = state.flapping.entry(name.to_owned()).or_default();
        let flap = flapping.ended(now, entry.session.age());
        if flap != Flap::No {
            self.metrics.agent_flapped();
        }
        if flap == Flap::Warn {
            tracing::warn!(
                agent = name,
                from = %entry.from,
                "agents of this name come and go quickly: one may crash, or two may replace each \
                 other; watertight_agent_flaps_total counts the next ones"
            );
        }
    }

    /// Tells the peers that all agents of this server are gone.
    pub(crate) fn withdraw(&self) {
        let state = self.lock();
        for (name, agent) in &state.agents {
            state.announce(name, agent.key, false);
        }
    }

    /// Returns the route to an agent: a session of its own here, or that of a peer which has it, if
    /// no session here is as fit. Sessions that were tried are left out.
    pub(crate) fn find(&self, name: &str, replicas: Replicas, tried: &[u64]) -> Option<Route> {
        let mut state = self.lock();
        let own = state.pick(name, replicas, tried);
        if state.peers.is_empty() || self.servers.contains(name) {
            return own.map(Route::direct);
        }
        let own_health = own.as_ref().map(|(entry, _)| entry.session.health());
        let peers = state.peers.values();
        let peers = peers.filter(|entry| entry.session.has_client(name));
        let peer = peers.min_by_key(|entry| entry.session.health());
        match (own, peer) {
            (Some(own), Some(peer)) if own_health <= Some(peer.session.health()) => {
                Some(Route::direct(own))
            }
            (_, Some(peer)) => Some(Route {
                entry: peer.clone(),
                through: Some(name.to_owned()),
                has_others: false,
            }),
            (own, None) => own.map(Route::direct),
        }
    }

    /// Returns the route to an agent that is connected here. Sessions that were tried are left out.
    pub(crate) fn own(&self, name: &str, replicas: Replicas, tried: &[u64]) -> Option<Route> {
        self.lock().pick(name, replicas, tried).map(Route::direct)
    }

    /// Whether an agent is connected here.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.lock().agents.contains_key(name)
    }

    /// Whether an agent is connected here or to a connected peer.
    pub(crate) fn reaches(&self, name: &str) -> bool {
        let state = self.lock();
        let mut peers = state.peers.values();
        state.agents.contains_key(name)
            || !self.servers.contains(name) && peers.any(|entry| entry.session.has_client(name))
    }

    /// Returns the names of the connected agents, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().agents.keys().cloned().collect();
        names.sort_unstable();
        names
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
        let agents = state.agents.iter().flat_map(|(name, agent)| {
            let sessions = agent.sessions.iter();
            sessions.map(move |(link, entry)| present(Party::Agent, name, link, entry))
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
    /// Returns the session for an agent's next stream, and whether there are others that were not
    /// tried.
    fn pick(&mut self, name: &str, replicas: Replicas, tried: &[u64]) -> Option<(Entry, bool)> {
        let sessions = &mut self.agents.get_mut(name)?.sessions;
        let has_others = sessions.len() > tried.len() + 1;
        let load = |it: &Entry| (!tried.contains(&it.session.id())).then(|| it.session.load());
        let entry = sessions.pick(replicas, load)?.clone();
        if has_others {
            // If it is frozen, the next streams go to another one.
            entry.session.probe();
        }
        Some((entry, has_others))
    }

    fn check(
        &self,
        name: &str,
        link: Option<LinkId>,
        terms: Terms,
        sessions_max: usize,
    ) -> Result<(), NotTaken> {
        let agent = self.agents.get(name);
        let replaces = match agent {
            Some(agent) => agent
                .sessions
                .check(link, terms, |it| it.session.health())?,
            None => false,
        };
        if replaces || self.agents().count() < sessions_max {
            Ok(())
        } else {
            Err(NotTaken::Sessions)
        }
    }

    /// Returns all sessions of agents, each with its agent's name.
    fn agents(&self) -> impl Iterator<Item = (&String, &Entry)> {
        let agents = self.agents.iter();
        agents.flat_map(|(name, agent)| agent.sessions.iter().map(move |(_, it)| (name, it)))
    }

    fn announce(&self, name: &str, key: i64, present: bool) {
        for listener in self.listeners.values() {
            listener.session.announce(name, key, present);
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
