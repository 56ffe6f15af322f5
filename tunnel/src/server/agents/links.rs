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
    /// By what an agent was let in.
    pub(crate) credential: Option<Credential>,
    /// Where the other end of its link is.
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
    /// Takes a session in and returns those whose place it takes.
    pub(crate) fn insert(&mut self, link: Option<LinkId>, entry: Entry) -> Vec<Entry> {
        let replaced = self.links.extract_if(.., |(old, _)| replaces(link, *old));
        let replaced = replaced.map(|(_, entry)| entry).collect();
        self.links.push((link, entry));
        replaced
    }

    /// Takes a session out.
    pub(crate) fn remove(&mut self, session: u64) -> Option<Entry> {
        let is_it = |(_, entry): &(_, Entry)| entry.session.id() == session;
        let at = self.links.iter().position(is_it)?;
        Some(self.links.remove(at).1)
    }

    /// Whether a session by `link` would take the place of another.
    pub(crate) fn has_place(&self, link: Option<LinkId>) -> bool {
        self.links.iter().any(|(old, _)| replaces(link, *old))
    }

    /// Returns the session with the fewest streams. One whose answer to a ping is overdue comes after all others, so
    /// that a link that is dead and not known to be gets no stream that another could serve.
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

    /// The sessions with the links that they named.
    pub(crate) fn named(&self) -> impl Iterator<Item = (Option<LinkId>, &Entry)> {
        self.links.iter().map(|(link, entry)| (*link, entry))
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

/// Whether a session by `new` takes the place of one by `old`: it is of another instance, or the same link once more.
fn replaces(new: Option<LinkId>, old: Option<LinkId>) -> bool {
    match (new, old) {
        (Some(new), Some(old)) => new.instance != old.instance || new.slot == old.slot,
        (None, _) | (_, None) => true,
    }
}
