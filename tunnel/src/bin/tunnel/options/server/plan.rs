//! What the options of a server come to, checked whole.

use std::collections::HashSet;
use std::env::VarError;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tunnel::credentials::Credentials;
use tunnel::io::tls;
use tunnel::io::tls::Files;
use tunnel::io::token::{Token, TokenError};
use tunnel::policy::Policy;
use tunnel::server;
use tunnel::server::auth::access::{Access, Grant, Rights};
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::server::auth::peers::Peers;
use tunnel::server::auth::roster;
use tunnel::server::config::port;
use tunnel::server::config::port::ProxyPort;
use tunnel::server::{Limits, Port};
use tunnel::wire::handshake;

use super::ServerOptions;
use crate::options::{Invitee, Span, common, secret, state};
use crate::run_server::{JoinPlan, TlsSource};

/// Everything that a server is started with.
#[derive(Debug)]
pub(crate) struct ServerPlan {
    pub(crate) config: server::Config,
    /// Where TLS of the front comes from; it is not in the configuration yet.
    pub(crate) tls: Option<TlsSource>,
    pub(crate) join: Option<JoinPlan>,
    pub(crate) drain: Duration,
    /// What decides about it besides the options themselves.
    pub(crate) files: Vec<PathBuf>,
}

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8123);

impl ServerOptions {
    /// Checks all options together, and reads the files that they name.
    pub(crate) fn plan(self) -> anyhow::Result<ServerPlan> {
        for (option, count) in [
            ("--max-connections", self.max_connections),
            ("--max-sessions", self.max_sessions),
            ("--max-streams", self.max_streams),
            ("--max-flows", self.max_flows),
        ] {
            ensure!(
                count != Some(0),
                "{option} must be at least 1: with 0 nothing could be served"
            );
        }
        for (option, span, why) in [
            ("--udp-idle", self.udp_idle, "every flow would end at once"),
            (
                "--handshake-timeout",
                self.handshake_timeout,
                "nobody could come by TLS",
            ),
            (
                "--header-timeout",
                self.header_timeout,
                "no request could be read",
            ),
            (
                "--response-timeout",
                self.response_timeout,
                "no target could respond",
            ),
            (
                "--linger",
                self.linger,
                "every half-closed stream would be reset at once",
            ),
        ] {
            let zero = span.is_some_and(|Span(span)| span.is_zero());
            ensure!(!zero, "{option} must be longer than 0s: {why}");
        }
        let admin = common::admin(self.admin, self.admin_public, self.admin_host.clone())?;
        if self.compat_metrics.is_some() && admin.is_none() {
            bail!("--compat-metrics adds to what --admin IP:PORT serves: set that too");
        }
        if self.remotedialer_token_header.is_some() && self.accept_remotedialer != Some(true) {
            bail!("--remotedialer-token-header is for --accept-remotedialer: set that too");
        }
        let join = self.join()?;
        let tls = self.tls(join.is_some())?;
        let (access, agents) = self.access(join.is_some())?;
        let peers = self.peers(agents.as_ref())?;
        let listen = self.listen.unwrap_or(DEFAULT_LISTEN);
        let mut config = server::Config::new(listen, access);
        if tls.is_none() && !listen.ip().is_loopback() {
            tracing::warn!(
                %listen,
                "without TLS everybody on the way can read tokens and streams: set --tls-cert and --tls-key, or --tls-self-signed"
            );
        }
        config.roster = self.roster(join.is_some())?;
        let credentials = self.proxy_credentials()?;
        let proxy = |port: &ProxyPort| ProxyPort {
            credentials: credentials.clone(),
            ..port.clone()
        };
        let socks5 = self.socks5.iter().flatten().map(proxy);
        let connect = self.http_connect.iter().flatten().map(proxy);
        config.ports = socks5
            .map(Port::Socks5)
            .chain(connect.map(Port::Connect))
            .collect();
        config.forwards = self.forward.unwrap_or_default();
        let ports = config.all_ports();
        port::validate(&ports)?;
        for port in &ports {
            let (agent, listen) = (port.agent(), port.listen());
            ensure!(
                config.access.allows_port(agent, listen),
                "{port}: agent {agent} has no right to it; add {listen} to ports of [server.agents.{agent}]"
            );
        }
        config.peers = peers.map(Arc::new);
        config.admin = admin;
        config.limits = limits(
            self.opens_per_second,
            self.opens_burst,
            self.bytes_per_second,
            Limits::default(),
        );
        common::timeouts(
            (&mut config.splice, &mut config.link),
            self.idle,
            self.tcp_keepalive,
            self.tcp_user_timeout,
        );
        config.compat_metrics = self.compat_metrics.map(Into::into);
        set(&mut config.tls_handshake_timeout, self.handshake_timeout);
        set(&mut config.header_timeout, self.header_timeout);
        set(&mut config.response_timeout, self.response_timeout);
        set(&mut config.splice.linger, self.linger);
        set(&mut config.datagrams.idle, self.udp_idle);
        config.datagrams.flows_max = self.max_flows.unwrap_or(config.datagrams.flows_max);
        config.connections_max = self.max_connections.unwrap_or(config.connections_max);
        config.sessions_max = self.max_sessions.unwrap_or(config.sessions_max);
        if let Some(bytes) = self.max_message {
            let least = 2 * config.link.batch;
            ensure!(
                bytes >= least,
                "--max-message must be at least {least}: agents send messages of up to half of that"
            );
            config.link.message_max = bytes;
        }
        if let Some(streams) = self.max_streams {
            config.mux.max_streams = streams;
            config.remotedialer_mux.max_streams = streams;
        }
        let remotedialer = self.accept_remotedialer.unwrap_or(false);
        config.remotedialer = remotedialer.then_some(Remotedialer {
            token_header: self.remotedialer_token_header,
        });
        let files = [
            config.roster.clone(),
            self.tls_cert,
            self.tls_key,
            self.tls_client_ca,
            self.token_file,
            self.peer_token_file,
            self.proxy_credentials_file,
        ];
        Ok(ServerPlan {
            config,
            tls,
            join,
            drain: self
                .drain
                .map_or(Duration::from_secs(10), |Span(span)| span),
            files: files.into_iter().flatten().collect(),
        })
    }

    /// Returns where TLS comes from.
    fn tls(&self, joins: bool) -> anyhow::Result<Option<TlsSource>> {
        let clients = match (&self.tls_client_ca, self.tls_clients) {
            (None, Some(_)) => {
                bail!("--tls-clients is about certificates of --tls-client-ca: set that too")
            }
            (_, clients) => clients.map(Into::into).unwrap_or_default(),
        };
        let self_signed = self.tls_self_signed;
        common::both(
            ("--tls-cert", "--tls-key"),
            (self.tls_cert.as_ref(), self.tls_key.as_ref()),
        )?;
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                ensure!(
                    self_signed != Some(true),
                    "--tls-self-signed makes what --tls-cert and --tls-key name: set one of the two"
                );
                Ok(Some(TlsSource::Files(Files {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    client_ca: self.tls_client_ca.clone(),
                    clients,
                })))
            }
            (None, None) if self_signed.unwrap_or(joins) => Ok(Some(TlsSource::SelfSigned {
                folder: state::folder(self.state_dir.as_deref())?,
                names: self.own_names(),
                client_ca: self.tls_client_ca.clone(),
                clients,
            })),
            (None, _) | (_, None) => {
                ensure!(
                    self.tls_client_ca.is_none(),
                    "--tls-client-ca is for a server with TLS: set --tls-cert and --tls-key, or --tls-self-signed"
                );
                Ok(None)
            }
        }
    }

    /// Returns under which names agents know this server.
    fn own_names(&self) -> Vec<String> {
        let mut names = vec![
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let listen = self.listen.unwrap_or(DEFAULT_LISTEN).ip();
        if !listen.is_unspecified() {
            names.push(listen.to_string());
        }
        names.extend(self.public_url.as_ref().map(|url| url.host().to_owned()));
        names
    }

    fn join(&self) -> anyhow::Result<Option<JoinPlan>> {
        let Some(Invitee(name)) = &self.print_join else {
            ensure!(
                self.join_lifetime.is_none(),
                "--join-lifetime is for --print-join: set that too, or leave it away"
            );
            return Ok(None);
        };
        let lifetime = self
            .join_lifetime
            .map_or(Duration::from_secs(3600), |Span(span)| span);
        ensure!(
            !lifetime.is_zero(),
            "--join-lifetime must be longer than 0s: nobody could join"
        );
        if self.public_url.is_none() {
            let listen = self.listen.unwrap_or(DEFAULT_LISTEN).ip();
            ensure!(
                !listen.is_unspecified(),
                "--print-join must tell agents where to connect, and --listen {listen} is no address to reach: set --public-url wss://HOST:PORT/connect"
            );
        }
        Ok(Some(JoinPlan {
            name: name.clone(),
            lifetime,
            public_url: self.public_url.clone(),
        }))
    }

    /// Returns the file with those who have joined. Once somebody has been invited the roster stays in force.
    fn roster(&self, joins: bool) -> anyhow::Result<Option<PathBuf>> {
        let wanted = joins || self.state_dir.is_some() || self.tls_self_signed == Some(true);
        let folder = wanted.then(|| state::folder(self.state_dir.as_deref()));
        let file = folder.transpose()?.map(|folder| folder.join("agents"));
        file.as_deref().map(roster::check).transpose()?;
        Ok(file)
    }

    /// Returns who is let in, and the secret that agents share, if they do.
    fn access(&self, invites: bool) -> anyhow::Result<(Access, Option<Token>)> {
        let mut access = Access::default();
        let of_all = limits(
            self.opens_per_second,
            self.opens_burst,
            self.bytes_per_second,
            Limits::default(),
        );
        for (name, grant) in self.agents.iter().flatten() {
            ensure!(
                handshake::is_name(name),
                "[server.agents.{name:?}]: a name has 1 to 64 letters, digits, '-', '_' or '.'"
            );
            let tokens = grant.tokens.clone().unwrap_or_default();
            ensure!(
                !tokens.is_empty(),
                "[server.agents.{name}] lets nobody in: give it tokens = [\"sha256:...\"], as `tunnel token` prints them, or remove it"
            );
            let rights = Rights {
                targets: grant.targets.clone().map(Policy::new),
                ports: grant.ports.clone(),
            };
            let own = (
                grant.opens_per_second,
                grant.opens_burst,
                grant.bytes_per_second,
            );
            let limits = (own != (None, None, None)).then(|| limits(own.0, own.1, own.2, of_all));
            access.grant(
                name.clone(),
                Grant {
                    tokens,
                    rights,
                    limits,
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

    fn proxy_credentials(&self) -> anyhow::Result<Option<Credentials>> {
        const VARIABLE: &str = "TUNNEL_PROXY_CREDENTIALS";
        let file = self.proxy_credentials_file.as_deref();
        ensure!(
            file.is_none() || self.socks5.is_some() || self.http_connect.is_some(),
            "--proxy-credentials-file is for --socks5 and --http-connect: set one of them, or leave it away"
        );
        let (text, origin) = match (file, std::env::var(VARIABLE)) {
            (Some(file), _) => {
                let name = file.display().to_string();
                let text = std::fs::read_to_string(file);
                (text.with_context(|| format!("cannot read {name}"))?, name)
            }
            (None, Ok(text)) => (text, VARIABLE.to_owned()),
            (None, Err(VarError::NotPresent)) => return Ok(None),
            (None, Err(VarError::NotUnicode(_))) => bail!("{VARIABLE} is not UTF-8"),
        };
        let credentials = text.parse();
        credentials
            .map(Some)
            .with_context(|| format!("the credentials in {origin} are wrong"))
    }

    fn peers(&self, agents: Option<&Token>) -> anyhow::Result<Option<Peers>> {
        let peers = self.peer.clone().unwrap_or_default();
        let Some(id) = self.peer_id.clone() else {
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
            "the peers' token is the agents': an agent could pass for a peer and be sent the streams of others; use another one"
        );
        let mut peers = Peers::new(id, token, peers);
        common::both(
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

fn limits(
    opens_per_second: Option<NonZeroU32>,
    burst: Option<NonZeroU32>,
    bytes_per_second: Option<NonZeroU64>,
    otherwise: Limits,
) -> Limits {
    Limits {
        opens_per_second: opens_per_second.or(otherwise.opens_per_second),
        burst: burst.map_or(otherwise.burst, NonZeroU32::get),
        bytes_per_second: bytes_per_second.or(otherwise.bytes_per_second),
    }
}

fn set(setting: &mut Duration, option: Option<Span>) {
    if let Some(Span(span)) = option {
        *setting = span;
    }
}
