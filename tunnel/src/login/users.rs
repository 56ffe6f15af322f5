//! Users, the digests of their secrets, and what each may ask for.

use std::collections::{BTreeMap, BTreeSet};

use tunnel_proto::policy::Policy;
use tunnel_proto::target::Target;

use crate::io::tls::Identity;
use crate::io::token::Digest;

/// Users by name. Only the digests of their secrets are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users(BTreeMap<String, User>);

/// One user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Its tokens: long random texts, which serve as passwords and as bearer tokens.
    pub tokens: Vec<Digest>,
    /// Its password. It serves with the user's name only, because people choose passwords that
    /// others may have too.
    pub password: Option<Digest>,
    /// What it may ask for.
    pub rights: UserRights,
}

/// What a user may ask for. What the agents are granted applies in addition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRights {
    /// The agents that it reaches, by name; `None` means all.
    pub agents: Option<BTreeSet<String>>,
    /// The targets that it may name; `None` means all. Names and addresses are compared as written.
    pub targets: Option<Policy>,
}

/// What a client presents to log in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Presented<'a> {
    /// A name and a password.
    Pair {
        /// The name.
        user: &'a [u8],
        /// The password.
        password: &'a [u8],
    },
    /// A token alone.
    Bearer(&'a [u8]),
}

impl Presented<'_> {
    /// Returns the name that is claimed, as text. It is empty if there is none.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Pair { user, .. } => String::from_utf8_lossy(user).into_owned(),
            Self::Bearer(_) => String::new(),
        }
    }
}

/// Why a text is not the credentials of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The name does not fit.
    #[error("a user's name has 1 to 255 bytes and no ':', since HTTP ends it there")]
    User,
    /// The password does not fit.
    #[error("a password has 1 to 255 bytes")]
    Password,
    /// There is no `:`.
    #[error("write USER:PASSWORD")]
    Malformed,
}

impl Users {
    /// Reads `USER:PASSWORD`, 1 to 255 bytes each (RFC 1929). White space around it is removed. The
    /// user has all rights.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] names the part that does not fit.
    pub fn of_pair(text: &str) -> Result<Self, CredentialsError> {
        let pair = text.trim().split_once(':');
        let (name, password) = pair.ok_or(CredentialsError::Malformed)?;
        if !(1..=255).contains(&password.len()) {
            return Err(CredentialsError::Password);
        }
        let user = User {
            password: Some(Digest::of(password.as_bytes())),
            ..User::default()
        };
        let mut users = Self::default();
        users.add(name, user)?;
        Ok(users)
    }

    /// Adds a user, and returns the one that it replaces.
    ///
    /// # Errors
    ///
    /// [`CredentialsError::User`].
    pub fn add(&mut self, name: &str, user: User) -> Result<Option<User>, CredentialsError> {
        if !(1..=255).contains(&name.len()) || name.contains(':') {
            return Err(CredentialsError::User);
        }
        Ok(self.0.insert(name.to_owned(), user))
    }

    /// Adds the users of `other`, and returns the name of one that is in both, if any.
    pub fn merge(&mut self, other: Self) -> Option<String> {
        let twice = other.0.keys().find(|name| self.0.contains_key(*name));
        let twice = twice.cloned();
        self.0.extend(other.0);
        twice
    }

    /// Whether there is no user.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the name of the user who has this secret. The time that it takes does not depend on
    /// which digest comes close.
    #[must_use]
    pub fn find(&self, presented: Presented<'_>) -> Option<&str> {
        let (named, secret) = match presented {
            Presented::Pair { user, password } => (Some(user), password),
            Presented::Bearer(token) => (None, token),
        };
        let asked = Digest::of(secret);
        // No short circuit: the time must not depend on the match.
        self.0.iter().fold(None, |found, (name, user)| {
            let is_named = named.is_none_or(|named| named == name.as_bytes());
            let password = user.password.iter().filter(|_| named.is_some());
            let matches = user.tokens.iter().chain(password);
            let matches = matches.fold(false, |found, known| found | known.matches(&asked));
            found.or((is_named & matches).then_some(name.as_str()))
        })
    }

    /// Whether another secret could be right: there is a user of that name, or no name is claimed.
    #[must_use]
    pub fn may_be(&self, presented: &Presented<'_>) -> bool {
        match presented {
            Presented::Pair { .. } => self.0.contains_key(&presented.name()),
            Presented::Bearer(_) => true,
        }
    }

    /// Returns the first user whose name is one of the DNS names of a client's certificate.
    #[must_use]
    pub fn certified(&self, identity: &Identity) -> Option<&str> {
        let names = identity.names();
        let mut users = self.0.keys().map(String::as_str);
        users.find(|user| names.iter().any(|name| name == user))
    }

    /// Whether a user may ask an agent for a target. A user that is unknown may not.
    #[must_use]
    pub fn allows(&self, user: &str, agent: &str, target: &Target) -> bool {
        self.0.get(user).is_some_and(|User { rights, .. }| {
            let agents = rights.agents.as_ref();
            let targets = rights.targets.as_ref();
            agents.is_none_or(|agents| agents.contains(agent))
                && targets.is_none_or(|policy| policy.covers(target))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn pair<'a>(user: &'a [u8], password: &'a [u8]) -> Presented<'a> {
        Presented::Pair { user, password }
    }

    #[test]
    fn only_the_same_pair_is_accepted() {
        let users = Users::of_pair(" anna:se:cret\n").unwrap();
        assert_eq!(users.find(pair(b"anna", b"se:cret")), Some("anna"));
        for (user, password) in [
            ("", ""),
            ("anna", "se:cre"),
            ("ann", "ase:cret"),
            ("anna:se", "cret"),
            ("other", "se:cret"),
        ] {
            let presented = pair(user.as_bytes(), password.as_bytes());
            assert_eq!(users.find(presented), None, "{user}:{password}");
        }
        // A password is no bearer token.
        assert_eq!(users.find(Presented::Bearer(b"se:cret")), None);
        assert!(!format!("{users:?}").contains("cret"));
        for wrong in ["", "anna", ":secret", "anna:"] {
            assert!(Users::of_pair(wrong).is_err());
        }
        let long = format!("a:{}", "b".repeat(256));
        assert_eq!(Users::of_pair(&long), Err(CredentialsError::Password));
    }

    #[test]
    fn a_token_serves_with_the_name_of_its_user_and_alone() {
        let mut users = Users::default();
        for (name, token) in [("anna", "one"), ("bert", "two")] {
            let user = User {
                tokens: vec![Digest::of(b"other"), Digest::of(token.as_bytes())],
                ..User::default()
            };
            users.add(name, user).unwrap();
        }
        assert_eq!(users.find(pair(b"bert", b"two")), Some("bert"));
        assert_eq!(users.find(pair(b"anna", b"two")), None);
        assert_eq!(users.find(Presented::Bearer(b"two")), Some("bert"));
        assert_eq!(users.find(Presented::Bearer(b"")), None);
    }

    #[test]
    fn rights_are_by_user() {
        let mut users = Users::of_pair("all:a").unwrap();
        let rights = UserRights {
            agents: Some(BTreeSet::from(["home".to_owned()])),
            targets: Some(Policy::new(vec!["10.0.0.0/8:80".parse().unwrap()])),
        };
        let user = User {
            rights,
            ..User::default()
        };
        users.add("some", user).unwrap();
        let asks = |user: &str, agent: &str, target: &str| {
            users.allows(user, agent, &target.parse().unwrap())
        };
        assert!(asks("some", "home", "tcp/10.1.2.3:80"));
        assert!(!asks("some", "home", "tcp/10.1.2.3:81"));
        assert!(!asks("some", "other", "tcp/10.1.2.3:80"));
        assert!(asks("all", "other", "tcp/10.1.2.3:81"));
        assert!(!asks("nobody", "home", "tcp/10.1.2.3:80"));
    }
}
