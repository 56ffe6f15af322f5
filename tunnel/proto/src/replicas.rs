//! The sessions of one name: what a newcomer does to the others, and which of them takes a new
//! stream.
//!
//! The links of one agent form an *instance*. Several instances may use one name, as the replicas
//! of a Kubernetes Deployment do, or the old and the new agent of a rolling update.

use std::fmt;
use std::str::FromStr;

mod flapping;

#[cfg(test)]
mod tests;

pub use flapping::{Flap, Flapping};

use crate::wire::handshake::LinkId;

/// What several agents of one name do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Replicas {
    /// They stay connected side by side. New streams go to the newest.
    #[default]
    Share,
    /// They stay connected side by side. A new stream goes to the session with the fewest streams.
    Spread,
    /// A newcomer replaces the others.
    Replace,
    /// A newcomer is refused while another one is live.
    Refuse,
}

impl Replicas {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Share, Self::Spread, Self::Replace, Self::Refuse];

    /// Returns how it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Spread => "spread",
            Self::Replace => "replace",
            Self::Refuse => "refuse",
        }
    }
}

impl fmt::Display for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("agents of one name share, spread, replace or refuse")]
pub struct ReplicasError;

impl FromStr for Replicas {
    type Err = ReplicasError;

    fn from_str(text: &str) -> Result<Self, ReplicasError> {
        let mut all = Self::ALL.into_iter();
        all.find(|policy| policy.name() == text)
            .ok_or(ReplicasError)
    }
}

/// How fit a session is for a new stream, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// The peer answers.
    Live,
    /// The answer to a ping is overdue: the peer may be frozen or cut off.
    Overdue,
    /// It takes no new streams.
    Draining,
}

impl Health {
    /// Returns how it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Overdue => "overdue",
            Self::Draining => "draining",
        }
    }
}

/// What speaks against giving a session the next stream: its health first, then its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// How fit it is.
    pub health: Health,
    /// How many streams it has.
    pub streams: usize,
}

/// Why a newcomer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another agent of the name is live, and the policy is [`Replicas::Refuse`].
    #[error("another agent of this name is connected")]
    Taken,
    /// The name has as many instances as it may.
    #[error("this name has as many agents as it may")]
    Full,
}

/// How a newcomer is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The policy of the name.
    pub replicas: Replicas,
    /// The most instances of one name.
    pub instances_max: usize,
}

/// The sessions of one name. Those of one instance are neighbors; the instances are in the order
/// in which they came.
#[derive(Debug)]
pub struct Sessions<T> {
    members: Vec<Member<T>>,
    /// Where the next search begins, so that sessions of equal load take turns.
    turn: usize,
}

#[derive(Debug)]
struct Member<T> {
    link: Option<LinkId>,
    session: T,
}

impl<T> Default for Sessions<T> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            turn: 0,
        }
    }
}

impl<T> Sessions<T> {
    /// Decides whether a session on `link` may come. Returns whether it would replace another one.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn check(
        &self,
        link: Option<LinkId>,
        terms: Terms,
        health: impl Fn(&T) -> Health,
    ) -> Result<bool, Refusal> {
        let replaced = self.replaced(link, terms, health)?;
        Ok(replaced.contains(&true))
    }

    /// Adds a session on `link`, and returns those that it replaces.
    ///
    /// # Errors
    ///
    /// [`Refusal`]. Nothing has changed then.
    pub fn insert(
        &mut self,
        link: Option<LinkId>,
        session: T,
        terms: Terms,
        health: impl Fn(&T) -> Health,
    ) -> Result<Vec<T>, Refusal> {
        let mut replaced = self.replaced(link, terms, health)?.into_iter();
        let sibling = |member: &Member<T>| is_sibling(member.link, link);
        let at = self.members.iter().rposition(sibling);
        let at = at.map_or(self.members.len(), |at| at + 1);
        self.members.insert(at, Member { link, session });
        let mut index = 0;
        let removed = self.members.extract_if(.., |_| {
            let is_new = index == at;
            index += 1;
            !is_new && replaced.next() == Some(true)
        });
        Ok(removed.map(|member| member.session).collect())
    }

    /// Returns for each session whether one on `link` replaces it. A link always replaces its
    /// older self.
    fn replaced(
        &self,
        link: Option<LinkId>,
        terms: Terms,
        health: impl Fn(&T) -> Health,
    ) -> Result<Vec<bool>, Refusal> {
        let has_siblings = self.members.iter().any(|it| is_sibling(it.link, link));
        let others = |replaces: &dyn Fn(&Member<T>) -> bool| -> Vec<bool> {
            let members = self.members.iter();
            let replaced = members.map(|it| {
                if is_sibling(it.link, link) {
                    it.link == link
                } else {
                    replaces(it)
                }
            });
            replaced.collect()
        };
        match terms.replicas {
            Replicas::Replace => Ok(others(&|_| true)),
            Replicas::Share | Replicas::Spread | Replicas::Refuse if has_siblings => {
                Ok(others(&|_| false))
            }
            Replicas::Refuse => {
                let mut members = self.members.iter();
                if members.any(|it| health(&it.session) == Health::Live) {
                    return Err(Refusal::Taken);
                }
                // One that drains still serves its streams.
                Ok(others(&|it| health(&it.session) == Health::Overdue))
            }
            Replicas::Share | Replicas::Spread => {
                if self.instances().count() < terms.instances_max {
                    return Ok(others(&|_| false));
                }
                // A dead instance must not keep a newcomer away.
                let is_dead = |instance: &&[Member<T>]| {
                    let mut members = instance.iter();
                    members.all(|it| health(&it.session) == Health::Overdue)
                };
                let dead = self.instances().find(is_dead).ok_or(Refusal::Full)?;
                let is_in = |it: &Member<T>| dead.iter().any(|dead| std::ptr::eq(dead, it));
                Ok(others(&is_in))
            }
        }
    }

    /// Returns the session for the next stream: the fittest, and of those the newest instance's,
    /// or with [`Replicas::Spread`] any instance's, with the fewest streams. A session without a
    /// load is left out.
    pub fn pick(&mut self, replicas: Replicas, load: impl Fn(&T) -> Option<Load>) -> Option<&T> {
        self.turn = self.turn.wrapping_add(1);
        let best = |members: &'_ [Member<T>]| -> Option<(Load, usize)> {
            let from = self.turn.checked_rem(members.len())?;
            let order = (from..members.len()).chain(0..from);
            let loads = order.filter_map(|at| Some((load(&members.get(at)?.session)?, at)));
            loads.min_by_key(|(load, _)| *load)
        };
        let at = match replicas {
            Replicas::Spread => best(&self.members)?.1,
            Replicas::Share | Replicas::Replace | Replicas::Refuse => {
                let mut before = self.members.len();
                let newest_first = self.instances().rev().filter_map(|instance| {
                    before -= instance.len();
                    let (load, at) = best(instance)?;
                    Some((load.health, before + at))
                });
                newest_first.min_by_key(|(health, _)| *health)?.1
            }
        };
        self.members.get(at).map(|member| &member.session)
    }

    /// Removes the first session for which `is_it` holds, and returns it with its link.
    pub fn remove(&mut self, is_it: impl Fn(&T) -> bool) -> Option<(Option<LinkId>, T)> {
        let mut members = self.members.iter();
        let at = members.position(|member| is_it(&member.session))?;
        let Member { link, session } = self.members.remove(at);
        Some((link, session))
    }

    /// Returns the sessions, each with its link.
    pub fn iter(&self) -> impl Iterator<Item = (Option<LinkId>, &T)> {
        let members = self.members.iter();
        members.map(|member| (member.link, &member.session))
    }

    /// Returns how many sessions there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no session.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn instances(&self) -> impl DoubleEndedIterator<Item = &[Member<T>]> {
        self.members.chunk_by(|a, b| is_sibling(a.link, b.link))
    }
}

/// Whether two links belong to one instance. An agent that names no link has one.
fn is_sibling(a: Option<LinkId>, b: Option<LinkId>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.instance == b.instance,
        (None, _) | (_, None) => false,
    }
}
