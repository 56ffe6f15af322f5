//! The access table: who may connect as an agent, what visitors may ask of each, and which users
//! may log in at public ports.
//!
//! Only the digests of tokens are kept. An agent with an entry of its own authenticates with the
//! tokens of that entry and no others. All other agents authenticate with the shared tokens. What
//! is not granted is refused.

use std::collections::BTreeMap;

use tunnel_proto::listen::Listen;
use tunnel_proto::policy::Policy;
use tunnel_proto::replicas::Replicas;
use tunnel_proto::target::Target;

use crate::io::token::{Digest, Token};
use crate::login::Users;
use crate::server::limits::Limits;

/// Who may connect, by name. The empty table lets no agent in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    shared: Vec<Digest>,
    replicas: Replicas,
    agents: BTreeMap<String, Grant>,
    users: Users,
}

/// What one agent is granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The tokens that it may authenticate with: the old one and the new one during a rotation.
    /// Without any, no agent of this name can connect.
    pub tokens: Vec<Digest>,
    /// What visitors may ask for.
    pub rights: Rights,
    /// Limits of its own instead of the server's. A change applies from the agent's next
    /// connection.
    pub limits: Option<Limits>,
    /// What several agents of this name do, instead of what [`Access::set_replicas`] says. A change
    /// applies to new streams and to the next agent that connects.
    pub replicas: Option<Replicas>,
}

/// What visitors may ask of an agent. The agent's own policy applies in addition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// The allowed targets; `None` means all. Names and addresses are compared as written. No name
    /// is resolved.
    pub targets: Option<Policy>,
    /// The public ports that may be used, by their address. Port 0 means every port of that
    /// address. `None` means all.
    pub ports: Option<Vec<Listen>>,
    /// Whether other servers may ask on behalf of their visitors. Without a value they may unless
    /// `ports` is set: the ports of other servers are not among those.
    pub peers: Option<bool>,
}

/// The token that a session authenticated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credential(Digest);

impl Credential {
    pub(crate) const fn of(token: &Token) -> Self {
        Self(token.digest())
    }
}

impl Access {
    /// Adds a token for all agents that have no entry of their own.
    pub fn share(&mut self, token: Digest) {
        if !self.shared.contains(&token) {
            self.shared.push(token);
        }
    }

    /// Sets what several agents of one name do whose entry does not say.
    pub const fn set_replicas(&mut self, replicas: Replicas) {
        self.replicas = replicas;
    }

    /// Adds an entry, and returns the one that it replaces.
    pub fn grant(&mut self, name: String, grant: Grant) -> Option<Grant> {
        self.agents.insert(name, grant)
    }

    /// Replaces the users.
    pub fn set_users(&mut self, users: Users) {
        self.users = users;
    }

    /// Returns the users.
    #[must_use]
    pub const fn users(&self) -> &Users {
        &self.users
    }

    /// Whether the name has an entry of its own.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.agents.contains_key(name)
    }

    /// Returns the names that have entries of their own.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.agents.keys().map(String::as_str)
    }

    /// Whether no agent can connect.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.agents.values().all(|grant| grant.tokens.is_empty())
    }

    /// Whether `token` is valid for any agent.
    #[must_use]
    pub fn has(&self, token: &Digest) -> bool {
        let own = self.agents.values().flat_map(|grant| &grant.tokens);
        own.chain(&self.shared).any(|known| known == token)
    }

    /// Returns the credential if `secret` is valid for an agent called `name`. The time that it
    /// takes reveals neither which digest comes close nor whether the name is known.
    pub(crate) fn admit(&self, name: &str, secret: &[u8]) -> Option<Credential> {
        let asked = Digest::of(secret);
        let known = self.digests(name).fold(false, |found, digest| {
            // No short circuit: the time must not depend on the match.
            found | digest.matches(&asked)
        });
        known.then_some(Credential(asked))
    }

    /// Whether `credential` is still valid for an agent called `name`.
    pub(crate) fn still_admits(&self, name: &str, credential: Credential) -> bool {
        self.digests(name).any(|digest| *digest == credential.0)
    }

    fn digests(&self, name: &str) -> impl Iterator<Item = &Digest> {
        match self.agents.get(name) {
            Some(grant) => grant.tokens.iter(),
            None => self.shared.iter(),
        }
    }

    /// Whether visitors may ask for `target` of the agent.
    pub(crate) fn allows_target(&self, name: &str, target: &Target) -> bool {
        let rights = self.agents.get(name).map(|grant| &grant.rights);
        let policy = rights.and_then(|rights| rights.targets.as_ref());
        policy.is_none_or(|policy| policy.covers(target))
    }

    /// Returns the agent's own limits.
    pub(crate) fn limits(&self, name: &str) -> Option<Limits> {
        self.agents.get(name)?.limits
    }

    /// Returns what several agents of this name do.
    pub(crate) fn replicas(&self, name: &str) -> Replicas {
        let own = self.agents.get(name).and_then(|grant| grant.replicas);
        own.unwrap_or(self.replicas)
    }

    /// Whether a port that listens there may be used for the agent.
    #[must_use]
    pub fn allows_port(&self, name: &str, listen: &Listen) -> bool {
        let rights = self.agents.get(name).map(|grant| &grant.rights);
        let ports = rights.and_then(|rights| rights.ports.as_ref());
        ports.is_none_or(|ports| ports.iter().any(|allowed| covers(allowed, listen)))
    }

    /// Whether other servers may ask the agent on behalf of their visitors.
    pub(crate) fn allows_peers(&self, name: &str) -> bool {
        let rights = self.agents.get(name).map(|grant| &grant.rights);
        rights.is_none_or(|rights| rights.peers.unwrap_or(rights.ports.is_none()))
    }
}

fn covers(allowed: &Listen, listen: &Listen) -> bool {
    match (allowed, listen) {
        (Listen::Inet(allowed), Listen::Inet(address)) => {
            allowed.ip() == address.ip()
                && (allowed.port() == 0 || allowed.port() == address.port())
        }
        (Listen::Unix(allowed), Listen::Unix(file)) => allowed.path() == file.path(),
        (Listen::Inet(_), Listen::Unix(_)) | (Listen::Unix(_), Listen::Inet(_)) => false,
    }
}

impl From<Token> for Access {
    /// Lets in every agent that has the token.
    fn from(token: Token) -> Self {
        Self {
            shared: vec![token.digest()],
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(secret: &str) -> Digest {
        Digest::of(secret.as_bytes())
    }

    fn access() -> Access {
        let mut access = Access::default();
        access.share(digest("shared"));
        let grant = Grant {
            tokens: vec![digest("old"), digest("new")],
            rights: Rights {
                targets: Some(Policy::new(vec![
                    "10.0.0.0/8:80".parse().unwrap(),
                    "*.internal:443".parse().unwrap(),
                    "unix:/run/apps/*".parse().unwrap(),
                    "udp:10.0.0.53:53".parse().unwrap(),
                ])),
                ports: Some(vec![
                    "127.0.0.1:8080".parse().unwrap(),
                    "127.0.0.2:0".parse().unwrap(),
                    "unix:/run/a.sock".parse().unwrap(),
                ]),
                peers: None,
            },
            ..Grant::default()
        };
        access.grant("home".to_owned(), grant);
        access
    }

    #[test]
    fn an_agent_with_an_entry_is_let_in_by_its_own_secrets_only() {
        let access = access();
        for secret in ["old", "new"] {
            assert!(access.admit("home", secret.as_bytes()).is_some());
            assert!(access.admit("other", secret.as_bytes()).is_none());
        }
        assert!(access.admit("home", b"shared").is_none());
        assert!(access.admit("other", b"shared").is_some());
        assert!(access.admit("home", b"").is_none());
        assert!(Access::default().admit("home", b"").is_none());
    }

    #[test]
    fn a_secret_that_is_taken_away_is_not_good_any_longer() {
        let before = access();
        let mut after = before.clone();
        let old = before.admit("home", b"old").unwrap();
        let new = before.admit("home", b"new").unwrap();
        let grant = Grant {
            tokens: vec![digest("new")],
            ..Grant::default()
        };
        after.grant("home".to_owned(), grant);
        assert!(before.still_admits("home", old));
        assert!(!after.still_admits("home", old));
        assert!(after.still_admits("home", new));
        // An entry of its own takes the shared secrets from a name.
        let shared = before.admit("other", b"shared").unwrap();
        after.grant("other".to_owned(), Grant::default());
        assert!(!after.still_admits("other", shared));
    }

    #[test]
    fn rights_are_about_what_is_asked_for() {
        let access = access();
        let asks = |name: &str, target: &str| access.allows_target(name, &target.parse().unwrap());
        for target in [
            "tcp/10.1.2.3:80",
            "tcp/db.internal:443",
            "unix//run/apps/a.sock",
            "udp/10.0.0.53:53",
        ] {
            assert!(asks("home", target), "{target}");
        }
        for target in [
            "tcp/10.1.2.3:81",
            "tcp/11.1.2.3:80",
            "tcp/internal:443",
            "tcp/10.0.0.53:53",
            "udp/10.1.2.3:80",
            "unix//run/a.sock",
            "unix//run/apps/below/a.sock",
        ] {
            assert!(!asks("home", target), "{target}");
            assert!(asks("other", target), "{target}");
        }
        let listens = |address: &str| access.allows_port("home", &address.parse().unwrap());
        assert!(
            listens("127.0.0.1:8080") && listens("127.0.0.2:9") && listens("unix:660:/run/a.sock")
        );
        assert!(
            !listens("127.0.0.1:8081") && !listens("127.0.0.3:9") && !listens("unix:/run/b.sock")
        );
        assert!(access.allows_port("other", &"0.0.0.0:1".parse().unwrap()));
        assert!(access.allows_peers("other") && !access.allows_peers("home"));
    }
}
