//! The command line.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hyper::header::HeaderName;
use tunnel::agent::policy::{Policy, Rule};
use tunnel::agent::proxy::Proxy;
use tunnel::agent::{self, ServerUrl};
use tunnel::dialect::Dialect;
use tunnel::metrics::Compat;
use tunnel::server::handshake::Remotedialer;
use tunnel::server::peer::{Peer, Peers};
use tunnel::server::{self, Forward, handshake};
use tunnel::token::{Token, TokenError};

/// A reverse tunnel: reach private services through an agent that dials out over one WebSocket.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE, propagate_version = true)]
pub(crate) struct Cli {
    /// How log lines look; they go to standard error. TUNNEL_LOG (or RUST_LOG) filters them, as in
    /// TUNNEL_LOG=tunnel=debug.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLE: &str = "\
Example, three shells on one machine:
  export TUNNEL_TOKEN=$(openssl rand -hex 32)          # the same in the first two
  tunnel server --forward 127.0.0.1:8080=home/tcp/127.0.0.1:9000
  tunnel agent --server ws://127.0.0.1:8123/connect --name home --allow 127.0.0.1:9000
  curl http://127.0.0.1:8080/                          # what listens on port 9000
  curl http://127.0.0.1:8123/client/home/http/127.0.0.1:9000/

SIGTERM and Ctrl-C drain: no new streams, those that are open may end (--drain), then the exit status is 0.
A second signal leaves at once.";

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DialectArg {
    /// This program's own.
    Native,
    /// That of rancher/remotedialer: no half-close, no acknowledged open.
    Remotedialer,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CompatArg {
    /// rancher/remotedialer: session_server_total_add_connections and nine more.
    Remotedialer,
}

impl From<CompatArg> for Compat {
    fn from(argument: CompatArg) -> Self {
        match argument {
            CompatArg::Remotedialer => Self::Remotedialer,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The public side: takes agents and visitors.
    ///
    /// Each listener is told on standard output as one line `listening KIND=ADDRESS`, KIND being front, forward or metrics;
    /// port 0 takes a free port.
    Server(ServerArgs),
    /// The private side: connects to the server and dials what --allow names.
    ///
    /// The links to the server, and nothing else, go through the HTTP proxy that http_proxy or else all_proxy names as
    /// http://[USER:PASSWORD@]HOST[:PORT]. no_proxy lists what is reached without: names, which stand for all below them, addresses,
    /// networks as 10.0.0.0/8, or * for everything. All of them may be in capitals, too. Servers on this machine need no proxy.
    Agent(AgentArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Where agents (/connect) and HTTP visitors (/client/AGENT/http/HOST:PORT/PATH, or http+unix and a socket's path
    /// with %2F for /) connect.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8123")]
    listen: SocketAddr,
    /// Forward a public port to one target, as 127.0.0.1:8080=home/tcp/127.0.0.1:9000,
    /// 127.0.0.1:8080=home/unix//run/app.sock or 127.0.0.1:5353=home/udp/10.0.0.53:53. Repeatable.
    ///
    /// The port is a UDP port if the target is one. Each address that sends to it is a flow of its own, with a socket of its own at the
    /// agent. Give such a port the address that visitors send to: answers from 0.0.0.0 leave by whatever address the system takes.
    #[arg(long = "forward", value_name = "LISTEN=AGENT/TARGET")]
    forwards: Vec<Forward>,
    /// Serve Prometheus counters at http://IP:PORT/metrics. Not served without this.
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    /// Serve another program's counters too, under its own names and labels, so that its dashboards go on working.
    #[arg(long, value_enum, value_name = "PROGRAM", requires = "metrics")]
    compat_metrics: Option<CompatArg>,
    /// How long open streams may go on after SIGTERM before they are reset.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,
    /// How long a target may take to begin its HTTP response; then the visitor gets 504.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    response_timeout: Duration,
    /// How long a half-closed connection may go without a byte before it is reset.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    linger: Duration,
    /// How long a UDP flow may go without a datagram before it ends; it may take twice as long.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    udp_idle: Duration,
    /// UDP flows of one forward at once; datagrams of more visitors are dropped and counted.
    #[arg(long, value_name = "COUNT", default_value_t = 512)]
    max_flows: usize,
    /// Connections at once, of visitors and agents together; more wait.
    #[arg(long, value_name = "COUNT", default_value_t = 16_384)]
    max_connections: usize,
    /// Take clients of rancher/remotedialer too: those that ask for no WebSocket subprotocol. They send the same token and their
    /// name in X-Tunnel-ID.
    #[arg(long)]
    accept_remotedialer: bool,
    /// The request header in which clients of remotedialer send the token, as X-API-Tunnel-Token; else Authorization: Bearer.
    #[arg(long, value_name = "HEADER", requires = "accept_remotedialer")]
    remotedialer_token_header: Option<HeaderName>,
    /// Streams of one agent at once; more are refused with 503.
    #[arg(long, value_name = "COUNT", default_value_t = 8192)]
    max_streams: usize,
    #[command(flatten)]
    peers: PeerArgs,
    #[command(flatten)]
    token: TokenArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The server, as ws://tunnel.example:8123/connect. Repeatable: the agent serves each by links of its own.
    #[arg(long = "server", value_name = "URL", required = true)]
    servers: Vec<ServerUrl>,
    /// The name under which visitors ask for this agent: 1 to 64 letters, digits, '-', '_' or '.'. A newer agent of the same
    /// name replaces this one.
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: String,
    /// Links to each server at once, 1 to 16. New streams go to the link with the fewest; one that breaks costs its own streams only
    /// and is made again.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(handshake::LINKS_MAX)))]
    links: u8,
    /// How the server talks: remotedialer is for servers built on rancher/remotedialer.
    #[arg(long, value_enum, default_value_t = DialectArg::Native)]
    dialect: DialectArg,
    /// The request header that carries the token, as X-API-Tunnel-Token; else Authorization: Bearer.
    #[arg(long, value_name = "HEADER")]
    token_header: Option<HeaderName>,
    /// Allow targets, as 127.0.0.1:9000, 10.0.0.0/8:8000-8099, [2001:db8::1]:*, db.internal:5432, *.internal:443,
    /// udp:10.0.0.53:53, unix:/run/app.sock or unix:/run/apps/*. Repeatable; without it every target is refused.
    ///
    /// What is checked is the address that is dialed, and of a Unix socket the file that all symbolic links lead to. A name stands
    /// for whatever it resolves to here, except for addresses of the machine and its link (127.0.0.0/8, ::1, 169.254.0.0/16,
    /// fe80::/10) and those where clouds keep their credentials: allow these by address, or by a network that lies within them.
    #[arg(long = "allow", value_name = "[udp:]HOST:PORT|unix:PATH")]
    allow: Vec<Rule>,
    /// How long resolving and dialing a target may take together.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    dial_timeout: Duration,
    /// How long open streams may go on after SIGTERM before they are reset.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,
    /// How long a half-closed connection may go without a byte before it is reset.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    linger: Duration,
    /// Serve Prometheus counters at http://IP:PORT/metrics. Not served without this.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Serve another program's counters too, under its own names and labels, so that its dashboards go on working.
    #[arg(long, value_enum, value_name = "PROGRAM", requires = "metrics")]
    pub(crate) compat_metrics: Option<CompatArg>,
    #[command(flatten)]
    token: TokenArgs,
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// The file with the secret that server and agents share; else the environment variable TUNNEL_TOKEN. There is no option for
    /// the secret itself: every user of the machine could read it.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl TokenArgs {
    fn read(&self) -> Result<Token, TokenError> {
        read_token(self.token_file.as_deref(), "--token-file", "TUNNEL_TOKEN")
    }
}

/// Reads a secret from the file that `option` names, or else from the environment.
fn read_token(
    file: Option<&Path>,
    option: &'static str,
    variable: &'static str,
) -> Result<Token, TokenError> {
    match file {
        Some(path) => Token::from_file(path),
        None => match std::env::var(variable) {
            Ok(secret) => Token::new(&secret, variable),
            Err(std::env::VarError::NotPresent) => Err(TokenError::Missing { option, variable }),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(TokenError::NotVisible(variable.to_owned()))
            }
        },
    }
}

#[derive(Debug, Args)]
struct PeerArgs {
    /// Another server, as east=ws://10.0.0.2:8123/connect: visitors reach its agents through this one, and its visitors the agents
    /// here. Both must name each other. Repeatable. Servers built on rancher/remotedialer can be peers.
    #[arg(long = "peer", value_name = "ID=URL", requires = "peer_id")]
    peers: Vec<Peer>,
    /// The name by which the peers know this server.
    #[arg(long, value_name = "ID", requires = "peers", value_parser = name)]
    peer_id: Option<String>,
    /// The file with the secret that all peers share; else the environment variable TUNNEL_PEER_TOKEN. Not that of the agents.
    #[arg(long, value_name = "FILE", requires = "peers")]
    peer_token_file: Option<PathBuf>,
}

impl PeerArgs {
    fn into_peers(self, agents: &Token) -> anyhow::Result<Option<Peers>> {
        let Some(id) = self.peer_id else {
            return Ok(None);
        };
        let mut names = HashSet::from([id.as_str()]);
        for peer in &self.peers {
            if !names.insert(&peer.id) {
                bail!(
                    "--peer {peer}: the name {} is taken; give each server one of its own",
                    peer.id
                );
            }
        }
        let file = self.peer_token_file.as_deref();
        let token = read_token(file, "--peer-token-file", "TUNNEL_PEER_TOKEN")?;
        if token == *agents {
            bail!(
                "the peers' token is the agents': an agent could pass for a peer and be sent the streams of others; use another one"
            );
        }
        Ok(Some(Peers::new(id, token, self.peers)))
    }
}

fn name(text: &str) -> Result<String, &'static str> {
    if handshake::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 64 letters, digits, '-', '_' or '.'")
    }
}

impl ServerArgs {
    pub(crate) fn into_config(self) -> anyhow::Result<server::Config> {
        if self.max_connections == 0 || self.max_streams == 0 || self.max_flows == 0 {
            bail!(
                "--max-connections, --max-streams and --max-flows must be at least 1: with 0 nothing could be served"
            );
        }
        if self.udp_idle.is_zero() {
            bail!("--udp-idle must be longer than 0s: every flow would end at once");
        }
        let token = self.token.read()?;
        let peers = self.peers.into_peers(&token)?;
        let mut config = server::Config::new(self.listen, token);
        config.peers = peers.map(Arc::new);
        config.forwards = self.forwards;
        config.metrics = self.metrics;
        config.compat_metrics = self.compat_metrics.map(Compat::from);
        config.response_timeout = self.response_timeout;
        config.splice.linger = self.linger;
        config.flow.idle = self.udp_idle;
        config.flow.flows_max = self.max_flows;
        config.connections_max = self.max_connections;
        config.mux.max_streams = self.max_streams;
        config.legacy.max_streams = self.max_streams;
        config.remotedialer = self.accept_remotedialer.then_some(Remotedialer {
            token_header: self.remotedialer_token_header,
        });
        Ok(config)
    }
}

impl AgentArgs {
    /// Returns one configuration for each server.
    pub(crate) fn into_configs(self) -> anyhow::Result<Vec<agent::Config>> {
        for (at, server) in self.servers.iter().enumerate() {
            if self
                .servers
                .iter()
                .take(at)
                .any(|earlier| earlier == server)
            {
                bail!(
                    "--server {server} is given twice: more links to one server are what --links is for"
                );
            }
        }
        if self.links > 1 && matches!(self.dialect, DialectArg::Remotedialer) {
            bail!(
                "--links is for --dialect native: a remotedialer server uses one session of a name"
            );
        }
        if self.allow.is_empty() {
            tracing::warn!("no --allow: every target will be refused");
        }
        let policy = Policy::new(self.allow);
        let token = self.token.read()?;
        let dialect = match self.dialect {
            DialectArg::Native => Dialect::Native,
            DialectArg::Remotedialer => Dialect::Remotedialer,
        };
        let configs = self.servers.into_iter().map(|server| {
            let proxy = Proxy::for_server(&server, |variable| {
                let value = std::env::var_os(variable)?;
                Some(value.to_string_lossy().into_owned())
            })?;
            if let Some(proxy) = &proxy {
                tracing::info!(%server, %proxy, "the server is reached through a proxy");
            }
            let (name, policy, token) = (self.name.clone(), policy.clone(), token.clone());
            let mut config = agent::Config::new(server, name, policy, token);
            config.proxy = proxy;
            config.links = self.links;
            config.dialect = dialect;
            config.token_header = self.token_header.clone();
            config.dial_timeout = self.dial_timeout;
            config.splice.linger = self.linger;
            Ok(config)
        });
        configs.collect()
    }
}
