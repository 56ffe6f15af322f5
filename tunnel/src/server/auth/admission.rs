//! Decides which agents are let in: by the configured access table, by the roster of those that
//! joined, or by an invitation.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tunnel_proto::Time;

use crate::io::token::{Digest, Token};
use crate::server::auth::access::{Access, Credential, Grant};
use crate::server::auth::roster::Roster;

/// The most invitations that may be open at once.
pub const INVITATIONS_MAX: usize = 256;

/// Decides which agents are let in. The table can be replaced while the server runs.
#[derive(Debug)]
pub(crate) struct Admission {
    /// What the configuration and the roster grant together.
    effective: RwLock<Arc<Access>>,
    invitations: Mutex<Vec<Invitation>>,
    /// Held across writes to the disk. Authentication does not wait for it.
    sources: Mutex<Sources>,
}

#[derive(Debug)]
struct Sources {
    configured: Access,
    roster: Roster,
}

/// What is to replace the sources.
pub(crate) struct Prepared(Sources);

#[derive(Debug)]
struct Invitation {
    token: Digest,
    /// The name of the agent that may use it. Without one, the first agent that comes.
    name: Option<String>,
    until: Time,
    /// Who joined by it and has not come back with its own token: the answer may be lost, and the
    /// agent may ask again.
    joined: Option<(String, Credential)>,
}

/// What an agent or a peer authenticated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdmittedBy {
    /// A token of its own, or a shared one.
    Known(Credential),
    /// An invitation, which has to be redeemed.
    Invited(Digest),
}

/// Why an invitation cannot be redeemed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedeemError {
    #[error("the one-time token is used or has expired")]
    Gone,
    #[error("the name is taken: choose another, or have an invitation made for this name")]
    NameTaken,
    #[error("the roster of joined agents is full")]
    Full,
    #[error("the new agent cannot be stored")]
    Io(#[from] io::Error),
}

/// Why an invitation cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// [`INVITATIONS_MAX`] are open.
    #[error("{INVITATIONS_MAX} invitations are open; wait until one is used or expires")]
    TooMany,
    /// The configuration has an entry for the name.
    #[error("agent {0} has tokens in the configuration already; it needs no invitation")]
    Configured(String),
    /// The system gives no random numbers.
    #[error("cannot make a token: {0}")]
    Random(#[from] io::Error),
}

impl Admission {
    pub(crate) fn new(configured: Access, roster: Option<&Path>) -> io::Result<Self> {
        let roster = Roster::load(roster)?;
        let effective = Arc::new(merge(&configured, &roster));
        Ok(Self {
            effective: RwLock::new(effective),
            invitations: Mutex::default(),
            sources: Mutex::new(Sources { configured, roster }),
        })
    }

    /// Reads the roster for [`Self::commit`]. It may block on the disk.
    pub(crate) fn prepare(configured: Access, roster: Option<&Path>) -> io::Result<Prepared> {
        let roster = Roster::load(roster)?;
        Ok(Prepared(Sources { configured, roster }))
    }

    /// Replaces the configured table and the roster. It may block on the disk.
    pub(crate) fn commit(&self, prepared: Prepared) {
        let Prepared(new) = prepared;
        let mut sources = lock(&self.sources);
        // An agent may have joined since the roster was read.
        let roster = new.roster.again().unwrap_or(new.roster);
        *sources = Sources {
            configured: new.configured,
            roster,
        };
        self.apply(&sources);
    }

    /// Makes an invitation.
    pub(crate) fn invite(
        &self,
        name: Option<&str>,
        now: Time,
        lifetime: Duration,
    ) -> Result<Token, InviteError> {
        if let Some(name) = name
            && lock(&self.sources).configured.knows(name)
        {
            return Err(InviteError::Configured(name.to_owned()));
        }
        let mut invitations = lock(&self.invitations);
        invitations.retain(|open| now < open.until);
        if invitations.len() >= INVITATIONS_MAX {
            return Err(InviteError::TooMany);
        }
        let token = Token::random()?;
        invitations.push(Invitation {
            token: token.digest(),
            name: name.map(str::to_owned),
            until: now.saturating_add(lifetime),
            joined: None,
        });
        Ok(token)
    }

    /// Returns what `secret` is, if it lets in an agent called `name`.
    pub(crate) fn admit(&self, name: &str, secret: &[u8], now: Time) -> Option<AdmittedBy> {
        if let Some(credential) = self.access().admit(name, secret) {
            let by = |(joined, own): &(String, Credential)| joined == name && *own == credential;
            lock(&self.invitations).retain(|open| !open.joined.as_ref().is_some_and(by));
            return Some(AdmittedBy::Known(credential));
        }
        let token = Digest::of(secret);
        let invitations = lock(&self.invitations);
        let open = invitations.iter().find(|open| open.is(&token, now))?;
        let is_for = open.name.as_deref().is_none_or(|only| only == name);
        let is_free = open.joined.as_ref().is_none_or(|(by, _)| by == name);
        (is_for && is_free).then_some(AdmittedBy::Invited(token))
    }

    /// Whether the invitation may take a name from an agent that is connected: it is for that name,
    /// and nobody has joined by it.
    pub(crate) fn may_replace(&self, token: &Digest) -> bool {
        let invitations = lock(&self.invitations);
        let mut named = invitations
            .iter()
            .filter(|open| open.name.is_some() && open.joined.is_none());
        named.any(|open| open.token.matches(token))
    }

    /// Adds an invited agent to the roster and returns its own token. The invitation stays open
    /// for this agent until it comes back with that token. It may block on the disk.
    pub(crate) fn redeem(
        &self,
        name: &str,
        token: Digest,
        now: Time,
    ) -> Result<Token, RedeemError> {
        let mut sources = lock(&self.sources);
        let invitation = {
            let mut invitations = lock(&self.invitations);
            let at = invitations.iter().position(|open| open.is(&token, now));
            invitations.swap_remove(at.ok_or(RedeemError::Gone)?)
        };
        let enrolled = sources.enroll(name, &invitation);
        let joined = match &enrolled {
            Ok(own) => {
                self.apply(&sources);
                Some((name.to_owned(), Credential::of(own)))
            }
            Err(_) => invitation.joined.clone(),
        };
        lock(&self.invitations).push(Invitation {
            joined,
            ..invitation
        });
        enrolled
    }

    /// Whether a session of `name` that was let in by `credential` may go on.
    pub(crate) fn still_admits(&self, name: &str, credential: Credential) -> bool {
        self.access().still_admits(name, credential)
    }

    /// Returns what is granted now.
    pub(crate) fn access(&self) -> Arc<Access> {
        let effective = self.effective.read();
        Arc::clone(&effective.unwrap_or_else(PoisonError::into_inner))
    }

    fn apply(&self, sources: &Sources) {
        let effective = Arc::new(merge(&sources.configured, &sources.roster));
        *self
            .effective
            .write()
            .unwrap_or_else(PoisonError::into_inner) = effective;
    }
}

impl Invitation {
    fn is(&self, token: &Digest, now: Time) -> bool {
        self.token.matches(token) && now < self.until
    }
}

impl Sources {
    fn enroll(&mut self, name: &str, invitation: &Invitation) -> Result<Token, RedeemError> {
        let is_named = invitation.name.is_some();
        let again = match &invitation.joined {
            Some((by, _)) if by != name => return Err(RedeemError::Gone),
            joined => joined.is_some(),
        };
        if self.configured.knows(name) || (self.roster.has(name) && !is_named && !again) {
            return Err(RedeemError::NameTaken);
        }
        if self.roster.is_full() && !self.roster.has(name) {
            return Err(RedeemError::Full);
        }
        let own = Token::random()?;
        self.roster.add(name, own.digest())?;
        Ok(own)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Merges both. An entry of the configuration overrides one of the roster.
fn merge(configured: &Access, roster: &Roster) -> Access {
    let mut access = configured.clone();
    for (name, digest) in roster.agents() {
        if !access.knows(name) {
            let grant = Grant {
                tokens: vec![digest],
                ..Grant::default()
            };
            access.grant(name.clone(), grant);
        }
    }
    access
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn admission() -> Admission {
        let token = Token::new("shared", "test").unwrap();
        Admission::new(Access::from(token), None).unwrap()
    }

    #[test]
    fn an_invitation_lets_one_agent_in_once() {
        let admission = admission();
        let start = Time::default();
        let token = admission.invite(None, start, HOUR).unwrap();
        let secret = token.expose().as_bytes();
        assert!(admission.admit("home", b"no", start).is_none());
        let Some(AdmittedBy::Invited(digest)) = admission.admit("home", secret, start) else {
            panic!("it is invited");
        };
        let own = admission.redeem("home", digest, start).unwrap();
        let own = admission.admit("home", own.expose().as_bytes(), start);
        let Some(AdmittedBy::Known(credential)) = own else {
            panic!("it has a token of its own");
        };
        assert!(admission.still_admits("home", credential));
        assert!(admission.admit("home", secret, start).is_none());
        assert!(matches!(
            admission.redeem("other", digest, start),
            Err(RedeemError::Gone)
        ));
        // From now on the shared secret is not good for this name.
        assert!(admission.admit("home", b"shared", start).is_none());
        assert!(admission.admit("other", b"shared", start).is_some());
    }

    #[test]
    fn a_join_whose_answer_was_lost_is_tried_again_by_the_same_agent_only() {
        let admission = admission();
        let start = Time::default();
        for name in [None, Some("home")] {
            let token = admission.invite(name, start, HOUR).unwrap();
            let secret = token.expose().as_bytes();
            let lost = admission.redeem("home", token.digest(), start).unwrap();
            assert!(!admission.may_replace(&token.digest()));
            let again = Some(AdmittedBy::Invited(token.digest()));
            assert_eq!(admission.admit("home", secret, start), again);
            assert_eq!(admission.admit("other", secret, start), None);
            assert!(matches!(
                admission.redeem("other", token.digest(), start),
                Err(RedeemError::Gone)
            ));
            let own = admission.redeem("home", token.digest(), start).unwrap();
            let lost = lost.expose().as_bytes();
            assert_eq!(admission.admit("home", lost, start), None);
            assert_eq!(admission.admit("home", secret, start), again);
            // It comes back with its token.
            let own = admission.admit("home", own.expose().as_bytes(), start);
            assert!(matches!(own, Some(AdmittedBy::Known(_))));
            assert_eq!(admission.admit("home", secret, start), None);
        }
    }

    #[test]
    fn an_invitation_ends_with_its_time() {
        let admission = admission();
        let start = Time::default();
        let token = admission.invite(None, start, HOUR).unwrap();
        let late = start.saturating_add(HOUR);
        assert!(
            admission
                .admit("home", token.expose().as_bytes(), late)
                .is_none()
        );
        assert!(matches!(
            admission.redeem("home", token.digest(), late),
            Err(RedeemError::Gone)
        ));
    }

    #[test]
    fn a_name_that_is_taken_needs_an_invitation_of_its_own() {
        let admission = admission();
        let start = Time::default();
        let join = |name: Option<&str>, as_name: &str| {
            let token = admission.invite(name, start, HOUR).unwrap();
            admission.redeem(as_name, token.digest(), start)
        };
        join(None, "home").unwrap();
        assert!(matches!(join(None, "home"), Err(RedeemError::NameTaken)));
        join(Some("home"), "home").unwrap();
        let token = admission.invite(Some("home"), start, HOUR).unwrap();
        assert!(
            admission
                .admit("other", token.expose().as_bytes(), start)
                .is_none()
        );
        let mut access = Access::default();
        access.grant("set".to_owned(), Grant::default());
        admission.commit(Admission::prepare(access, None).unwrap());
        assert!(matches!(
            admission.invite(Some("set"), start, HOUR),
            Err(InviteError::Configured(_))
        ));
    }

    #[test]
    fn invitations_are_bounded() {
        let admission = admission();
        let start = Time::default();
        for _ in 0..INVITATIONS_MAX {
            admission.invite(None, start, HOUR).unwrap();
        }
        assert!(matches!(
            admission.invite(None, start, HOUR),
            Err(InviteError::TooMany)
        ));
        admission
            .invite(None, start.saturating_add(HOUR), HOUR)
            .unwrap();
    }
}
