//! The sessions of one agent: one for each of its links.

use tunnel_proto::wire::handshake::LinkId;

use crate::io::scope;
use crate::io::socket::PeerAddr;
use crate::server::auth::access::Credential;
use crate::session::Session;

/// One session, and the scope that owns the tasks of its streams.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) session: Session,
    pub(crate) scope: scope::Handle,
    /// The token that the agent authenticated with.
    pub(crate) credential: Option<Credential>,
    /// The address of the link's other end.
    pub(crate) from: PeerAddr,
}

/// The sessions of one instance of an agent, used side by side.
#[derive(Debug, Default)]
pub(crate) struct Links {
    links: Vec<(Option<LinkId>, Entry)>,
    /// Where the next search begins, so that sessions of equal load take turns.
    turn: usize,
}

impl Links {
    /// Adds a session and returns those that it replaces.
    pub(crate) fn insert(&mut self, link: Option<LinkId>, entry: Entry) -> Vec<Entry> {
        let replaced = self.links.extract_if(.., |(old, _)| replaces(link, *old));
        let replaced = replaced.map(|(_, entry)| entry).collect();
        self.links.push((link, entry));
        replaced
    }

    /// Removes a session.
    pub(crate) fn remove(&mut self, session: u64) -> Option<Entry> {
        let is_it = |(_, entry): &(_, Entry)| entry.session.id() == session;
        let at = self.links.iter().position(is_it)?;
        Some(self.links.remove(at).1)
    }

    /// Whether a session on `link` would replace another one.
    pub(crate) fn would_replace(&self, link: Option<LinkId>) -> bool {
        self.links.iter().any(|(old, _)| replaces(link, *old))
    }

    /// Returns the session with the fewest streams. A session whose ping is overdue comes last, so
    /// that a dead link gets no stream that another link could serve.
    pub(crate) fn pick(&mut self) -> Option<&Entry> {
        self.turn = self.turn.wrapping_add(1);
        let from = self.turn.checked_rem(self.links.len())?;
        let (earlier, later) = self.links.split_at_checked(from)?;
        let links = later.iter().chain(earlier).map(|(_, entry)| entry);
        links.min_by_key(|entry| entry.session.load())
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.links.iter().map(|(_, entry)| entry)
    }

    /// Returns the sessions, each with its link.
    pub(crate) fn named(&self) -> impl Iterator<Item = (Option<LinkId>, &Entry)> {
        self.links.iter().map(|(link, entry)| (*link, entry))
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

/// Whether a session on `new` replaces one on `old`: it belongs to another instance, or it is the
/// same link again.
fn replaces(new: Option<LinkId>, old: Option<LinkId>) -> bool {
    match (new, old) {
        (Some(new), Some(old)) => new.instance != old.instance || new.slot == old.slot,
        (None, _) | (_, None) => true,
    }
}
