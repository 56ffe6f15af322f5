//! The options of `tunnel server`.

use std::collections::{BTreeMap, HashSet};
use std::env::VarError;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hyper::header::HeaderName;
use serde::Deserialize;
use tunnel::agent::ServerUrl;
use tunnel::agent::policy::{Policy, Rule};
use tunnel::server::access::{Access, Grant, Rights};
use tunnel::server::handshake::{self, Remotedialer};
use tunnel::server::peer::{Peer, Peers};
use tunnel::server::port::{self, Credentials, ProxyPort};
use tunnel::server::roster;
use tunnel::server::{self, Forward, Limits, Listen, Port};
use tunnel::tls::{self, Files};
use tunnel::token::{Digest, Token, TokenError};

use super::{
    HostName, Invitee, Span, common, name, named, options, path, rebase, secret, state, text, texts,
};
use crate::cli::{ClientsArg, CompatArg};
use crate::serve::{JoinPlan, TlsSource};

options! {
    /// What `tunnel server` can be told.
    pub(crate) struct ServerOptions {
        /// Where agents (/connect) and HTTP visitors (/client/AGENT/http/HOST:PORT/PATH, or http+unix and a socket's path
        /// with %2F for /) connect [default: 127.0.0.1:8123].
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// The certificate of --listen in PEM, and what is between it and its authority: agents and visitors come by TLS then. A
        /// file that changes is taken without a break.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        tls_cert: PathBuf,
        /// The private key of --tls-cert in PEM.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        tls_key: PathBuf,
        /// The authorities of clients in PEM (mutual TLS): the certificate of an agent must have its name among its DNS names.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        tls_client_ca: PathBuf,
        /// Who must show a certificate of --tls-client-ca [default: required].
        #[arg(long, value_enum, value_name = "WHO")]
        tls_clients: ClientsArg,
        /// Make an authority and a certificate in --state-dir, and renew it; agents trust it by a pin, which --print-join tells them.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
        tls_self_signed: bool,
        /// Print a line by which one agent can join, within --join-lifetime and once: `tunnel agent LINE`. It names the server, proves
        /// it and lets the agent in. With a name it is for an agent of that name only, also if one of that name has joined before. Without
        /// --tls-cert it sets --tls-self-signed.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "", value_name = "NAME")]
        #[serde(deserialize_with = "text")]
        print_join: Invitee,
        /// How long a line of --print-join is good [default: 1h].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        join_lifetime: Span,
        /// How agents reach this server, for --print-join and the names in the certificate of --tls-self-signed, as
        /// wss://tunnel.example:8123/connect [default: by the address of --listen].
        #[arg(long, value_name = "URL")]
        #[serde(deserialize_with = "text")]
        public_url: ServerUrl,
        /// Where the server keeps the agents that have joined, and its own authority [default: $STATE_DIRECTORY, or watertight in
        /// $XDG_STATE_HOME or ~/.local/state].
        #[arg(long, value_name = "DIRECTORY")]
        #[serde(deserialize_with = "path")]
        state_dir: PathBuf,
        /// Forward a public port to one target, as 127.0.0.1:8080=home/tcp/127.0.0.1:9000,
        /// 127.0.0.1:8080=home/unix//run/app.sock, unix:/run/db.sock=home/tcp/10.0.0.5:5432 or
        /// 127.0.0.1:5353=home/udp/10.0.0.53:53. Repeatable.
        ///
        /// The file of a Unix socket is its user's only; unix:660:/run/db.sock gives it another mode.
        /// The port is a UDP port if the target is one. Each address that sends to it is a flow of its own, with a socket of its own at
        /// the agent. Give such a port the address that visitors send to: answers from 0.0.0.0 leave by whatever address the system takes.
        #[arg(long, value_name = "LISTEN=AGENT/TARGET", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        forward: Vec<Forward>,
        /// Serve SOCKS5 (CONNECT) on a port whose visitors name targets of one agent, as 127.0.0.1:1080=home. Repeatable.
        #[arg(long, value_name = "LISTEN=AGENT", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        socks5: Vec<ProxyPort>,
        /// Serve HTTP CONNECT on a port whose visitors name targets of one agent, as 127.0.0.1:3128=home. Repeatable.
        #[arg(long, value_name = "LISTEN=AGENT", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        http_connect: Vec<ProxyPort>,
        /// The file with the USER:PASSWORD that visitors of --socks5 and --http-connect must know; else the environment variable
        /// TUNNEL_PROXY_CREDENTIALS. Without them these ports may listen on loopback addresses and Unix sockets only.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        proxy_credentials_file: PathBuf,
        /// Serve the admin port: /metrics for Prometheus, /livez, /readyz, /admin/sessions, /admin/streams, and a page at /. Not served
        /// without this.
        #[arg(long, value_name = "IP:PORT")]
        admin: SocketAddr,
        /// Let --admin listen on an address that other machines reach: it shows sessions and targets to whoever asks.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
        admin_public: bool,
        /// A name by which the admin port may be asked, besides addresses and localhost; others are refused, so that no page of
        /// another site can read it (DNS rebinding). Repeatable.
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        admin_host: Vec<HostName>,
        /// Serve another program's counters too, under its own names and labels, so that its dashboards go on working.
        #[arg(long, value_enum, value_name = "PROGRAM")]
        compat_metrics: CompatArg,
        /// How long open streams may go on after SIGTERM before they are reset [default: 10s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        drain: Span,
        /// How long a TLS handshake may take [default: 10s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        handshake_timeout: Span,
        /// The longest message of a link that is taken, in bytes; a longer one ends its link [default: 262144].
        #[arg(long, value_name = "BYTES")]
        max_message: usize,
        /// How long the head of a request may take, and how long a kept-alive connection may be silent [default: 30s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        header_timeout: Span,
        /// How long a target may take to begin its HTTP response; then the visitor gets 504 [default: 60s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        response_timeout: Span,
        /// How long a half-closed connection may go without a byte before it is reset [default: 60s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        linger: Span,
        /// How long any stream may go without a byte in either direction before it is reset; 0s for ever [default: 0s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        idle: Span,
        /// How long a connection may be silent before TCP asks whether the other end is still there; 0s never asks [default: 60s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        tcp_keepalive: Span,
        /// How long what was sent may go unacknowledged before TCP gives the connection up; 0s leaves it to the system
        /// [default: 30s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        tcp_user_timeout: Span,
        /// How long a UDP flow may go without a datagram before it ends; it may take twice as long [default: 60s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        udp_idle: Span,
        /// UDP flows of one forward at once; datagrams of more visitors are dropped and counted [default: 512].
        #[arg(long, value_name = "COUNT")]
        max_flows: usize,
        /// Connections at once, of visitors and agents together; more wait [default: 16384].
        #[arg(long, value_name = "COUNT")]
        max_connections: usize,
        /// Links of agents at once; more are refused with 503 [default: 4096].
        #[arg(long, value_name = "COUNT")]
        max_sessions: usize,
        /// Streams of one agent at once; more are refused with 503 [default: 8192].
        #[arg(long, value_name = "COUNT")]
        max_streams: usize,
        /// Streams that visitors may open a second to one agent; more are refused. No bound without.
        #[arg(long, value_name = "COUNT")]
        opens_per_second: NonZeroU32,
        /// Streams that may be opened at once after a pause, with --opens-per-second [default: 100].
        #[arg(long, value_name = "COUNT")]
        opens_burst: NonZeroU32,
        /// Payload bytes a second that the streams of one agent may carry, both directions together; more wait where they come
        /// from. No bound without.
        #[arg(long, value_name = "BYTES")]
        bytes_per_second: NonZeroU64,
        /// Take clients of rancher/remotedialer too: those that ask for no WebSocket subprotocol. They send the same token and their
        /// name in X-Tunnel-ID.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
        accept_remotedialer: bool,
        /// The request header in which clients of remotedialer send the token, as X-API-Tunnel-Token; else Authorization: Bearer.
        #[arg(long, value_name = "HEADER")]
        #[serde(deserialize_with = "text")]
        remotedialer_token_header: HeaderName,
        /// The file with a secret that agents of every name know which has no tokens of its own (in the file, [server.agents.NAME]);
        /// else the environment variable TUNNEL_TOKEN. There is no option for the secret itself: every user of the machine could read it.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        token_file: PathBuf,
        /// Another server, as east=ws://10.0.0.2:8123/connect: visitors reach its agents through this one, and its visitors the agents
        /// here. Both must name each other. Repeatable. Servers built on rancher/remotedialer can be peers.
        #[arg(long, value_name = "ID=URL", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        peer: Vec<Peer>,
        /// The authorities that peers' certificates are trusted by instead of the system's, in PEM.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        peer_ca_file: PathBuf,
        /// The certificate that this server shows to its peers, in PEM, with --peer-id among its DNS names.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        peer_tls_cert: PathBuf,
        /// The private key of --peer-tls-cert in PEM.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        peer_tls_key: PathBuf,
        /// The name by which the peers know this server.
        #[arg(long, value_name = "ID", value_parser = name)]
        #[serde(deserialize_with = "named")]
        peer_id: String,
        /// The file with the secret that all peers share; else the environment variable TUNNEL_PEER_TOKEN. Not that of the agents.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        peer_token_file: PathBuf,
        /// What single agents are granted; in the file only.
        #[arg(skip)]
        agents: BTreeMap<String, GrantOptions>,
    }
}

/// What one agent is granted: `[server.agents.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct GrantOptions {
    /// The digests of its tokens, as `tunnel token` prints them. Any of them is good, so that they can be rotated.
    #[serde(deserialize_with = "texts")]
    pub(crate) tokens: Option<Vec<Digest>>,
    /// What may be asked of it, written like the agent's --allow.
    #[serde(deserialize_with = "texts")]
    pub(crate) targets: Option<Vec<Rule>>,
    /// Instead of the server's --opens-per-second.
    pub(crate) opens_per_second: Option<NonZeroU32>,
    /// Instead of the server's --opens-burst.
    pub(crate) opens_burst: Option<NonZeroU32>,
    /// Instead of the server's --bytes-per-second.
    pub(crate) bytes_per_second: Option<NonZeroU64>,
    /// Which ports may lead to it, by where they listen; port 0 stands for every port of its address.
    #[serde(deserialize_with = "texts")]
    pub(crate) ports: Option<Vec<Listen>>,
}

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

/// What takes effect while the server runs; all else needs a new start.
pub(crate) const LIVE: &[&str] = &[
    "agents",
    "forward",
    "http-connect",
    "proxy-credentials-file",
    "socks5",
    "tls-cert",
    "tls-client-ca",
    "tls-clients",
    "tls-key",
    "token-file",
];

const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8123);

impl ServerOptions {
    /// Makes paths of the file independent of where the program is started.
    pub(crate) fn rebase(&mut self, folder: &Path) {
        for path in [
            &mut self.tls_cert,
            &mut self.tls_key,
            &mut self.tls_client_ca,
            &mut self.state_dir,
            &mut self.peer_ca_file,
            &mut self.peer_tls_cert,
            &mut self.peer_tls_key,
        ] {
            rebase(path, folder);
        }
        rebase(&mut self.token_file, folder);
        rebase(&mut self.peer_token_file, folder);
        rebase(&mut self.proxy_credentials_file, folder);
    }

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
        set(&mut config.flow.idle, self.udp_idle);
        config.flow.flows_max = self.max_flows.unwrap_or(config.flow.flows_max);
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
            config.legacy.max_streams = streams;
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
            (Some(_), None) => bail!("--tls-cert needs --tls-key, its private key"),
            (None, Some(_)) => bail!("--tls-key needs --tls-cert, its certificate"),
            (None, None) if self_signed.unwrap_or(joins) => Ok(Some(TlsSource::SelfSigned {
                folder: state::folder(self.state_dir.as_deref())?,
                names: self.own_names(),
                client_ca: self.tls_client_ca.clone(),
                clients,
            })),
            (None, None) => {
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
