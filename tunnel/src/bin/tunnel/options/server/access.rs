//! Who is let in by a server, and what they may do.

use std::collections::HashSet;
use std::num::NonZeroU32;

use anyhow::{Context as _, ensure};
use tunnel::io::tls;
use tunnel::io::token::{Token, TokenError};
use tunnel::policy::Policy;
use tunnel::replicas::Replicas;
use tunnel::server::Limits;
use tunnel::server::auth::access::{Access, Grant, Rights};
use tunnel::server::auth::peers::Peers;
use tunnel::wire::handshake;

use super::{GrantOptions, ServerOptions};
use crate::options::common::both;
use crate::options::secret;
use crate::options::value::{Name, several};

impl ServerOptions {
    /// Returns who is let in, and the secret that agents share, if they do.
    pub(super) fn access(&self, invites: bool) -> anyhow::Result<(Access, Option<Token>)> {
        let mut access = Access::default();
        access.set_replicas(self.replicas.map(Replicas::from).unwrap_or_default());
        let of_all = self.limits();
        for (name, grant) in self.agents.iter().flatten() {
            ensure!(
                handshake::is_name(name),
                "[server.agents.{name:?}]: {}",
                handshake::NAME_FORM
            );
            let tokens = grant.tokens.clone().unwrap_or_default();
            ensure!(
                !tokens.is_empty(),
                "[server.agents.{name}] lets nobody in: give it tokens = [\"sha256:...\"], as \
                 `tunnel token` prints them, or remove it"
            );
            let rights = Rights {
                targets: grant.targets.clone().map(Policy::new),
                ports: grant
                    .ports
                    .as_ref()
                    .map(|_| several(&grant.ports).cloned().collect()),
                peers: grant.peers,
            };
            let limits = grant.limits(of_all);
            access.grant(
                name.clone(),
                Grant {
                    tokens,
                    rights,
                    limits,
                    replicas: grant.replicas.map(Replicas::from),
                },
            );
        }
        let file = self.token_file.as_deref();
        let shared = match secret::read(file, "--token-file", "TUNNEL_TOKEN") {
            Ok(token) => Some(token),
            Err(TokenError::Missing { .. }) if invites || !access.is_empty() => None,
            Err(error) => return Err(error).context("nobody could be let in"),
        };
        if let Some(token) = &shared {
            access.share(token.digest());
        }
        Ok((access, shared))
    }

    /// Returns the limits of an agent that has none of its own.
    pub(super) fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            opens_per_second: self.opens_per_second.or(default.opens_per_second),
            burst: self.opens_burst.map_or(default.burst, NonZeroU32::get),
            bytes_per_second: self.bytes_per_second.or(default.bytes_per_second),
        }
    }

    /// Returns the peers; `agents` is the secret of the agents, which must not be theirs.
    pub(super) fn peers(&self, agents: Option<&Token>) -> anyhow::Result<Option<Peers>> {
        let peers = self.peer.clone().unwrap_or_default();
        let Some(Name(id)) = self.peer_id.clone() else {
            ensure!(
                peers.is_empty(),
                "--peer needs --peer-id ID, the name by which the peers know this server"
            );
            for (option, file) in [
                ("--peer-token-file", &self.peer_token_file),
                ("--peer-ca-file", &self.peer_ca_file),
                ("--peer-tls-cert", &self.peer_tls_cert),
                ("--peer-tls-key", &self.peer_tls_key),
            ] {
                ensure!(
                    file.is_none(),
                    "{option} is for servers with peers: set --peer and --peer-id"
                );
            }
            return Ok(None);
        };
        ensure!(
            !peers.is_empty(),
            "--peer-id {id}: without a --peer ID=URL nobody asks for it"
        );
        let mut names = HashSet::from([id.as_str()]);
        for peer in &peers {
            ensure!(
                names.insert(&peer.id),
                "--peer {peer}: the name {} is taken; give each server one of its own",
                peer.id
            );
        }
        let file = self.peer_token_file.as_deref();
        let token = secret::read(file, "--peer-token-file", "TUNNEL_PEER_TOKEN")?;
        ensure!(
            agents != Some(&token),
            "the peers' token is the agents': an agent could pass for a peer and be sent \
             the streams of others; use another one"
        );
        let mut peers = Peers::new(id, token, peers);
        both(
            ("--peer-tls-cert", "--peer-tls-key"),
            (self.peer_tls_cert.as_ref(), self.peer_tls_key.as_ref()),
        )?;
        peers.tls = tls::Client::load(tls::ClientFiles {
            ca_file: self.peer_ca_file.clone(),
            certificate: self.peer_tls_cert.clone(),
            key: self.peer_tls_key.clone(),
            ..tls::ClientFiles::default()
        })?;
        Ok(Some(peers))
    }
}

impl GrantOptions {
    /// Returns the limits of this agent, if any differs from those of all.
    fn limits(&self, of_all: Limits) -> Option<Limits> {
        let own = self.opens_per_second.is_some()
            || self.opens_burst.is_some()
            || self.bytes_per_second.is_some();
        own.then(|| Limits {
            opens_per_second: self.opens_per_second.or(of_all.opens_per_second),
            burst: self.opens_burst.map_or(of_all.burst, NonZeroU32::get),
            bytes_per_second: self.bytes_per_second.or(of_all.bytes_per_second),
        })
    }
}
