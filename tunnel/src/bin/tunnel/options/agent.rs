//! The options of `tunnel agent`.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hyper::header::HeaderName;
use tunnel::agent::Invited;
use tunnel::io::tls;
use tunnel::io::tls::Pin;
use tunnel::io::token::Token;
use tunnel::metrics::Compat;
use tunnel::policy::{Policy, Rule};
use tunnel::uplink::proxy::Proxy;
use tunnel::uplink::{Join, ServerUrl};
use tunnel::wire::Dialect;
use tunnel::wire::handshake::LINKS_MAX;
use tunnel::{admin, agent};

use super::{
    HostName, Span, common, name, named, options, path, rebase, secret, state, text, texts,
};
use crate::cli::{CompatArg, DialectArg};

options! {
    /// What `tunnel agent` can be told.
    pub(crate) struct AgentOptions {
        /// The line that `tunnel server --print-join` prints, in quotes, or - to read it from standard input. It names the server, proves
        /// it, and is good once: the agent gets a token of its own in return.
        #[arg(value_name = "LINE")]
        join: String,
        /// The server, as wss://tunnel.example:8123/connect. Repeatable: the agent serves each by links of its own.
        #[arg(long, value_name = "URL", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        server: Vec<ServerUrl>,
        /// The authorities that the server's certificate is trusted by instead of the system's, in PEM.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        ca_file: PathBuf,
        /// The pin of the server's key or of its authority's, as sha256:... in the line of `tunnel server --print-join`. Without
        /// --ca-file nothing else is trusted. Repeatable.
        #[arg(long, value_name = "PIN", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        server_pin: Vec<Pin>,
        /// The name that the server's certificate must have instead of the host in its URL.
        #[arg(long, value_name = "NAME")]
        #[serde(deserialize_with = "text")]
        server_name: HostName,
        /// The certificate that this agent shows to a server that asks for one, in PEM, with the agent's name among its DNS names.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        tls_cert: PathBuf,
        /// The private key of --tls-cert in PEM.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        tls_key: PathBuf,
        /// The name under which visitors ask for this agent: 1 to 64 letters, digits, '-', '_' or '.' [default: the machine's name]. A
        /// newer agent of the same name replaces this one.
        #[arg(long, value_name = "NAME", value_parser = name)]
        #[serde(deserialize_with = "named")]
        name: String,
        /// Links to each server at once, 1 to 16 [default: 1]. New streams go to the link with the fewest; one that breaks costs its own
        /// streams only and is made again.
        #[arg(long, value_name = "COUNT")]
        links: u8,
        /// How the server talks [default: native]; remotedialer is for servers built on rancher/remotedialer.
        #[arg(long, value_enum)]
        dialect: DialectArg,
        /// The request header that carries the token, as X-API-Tunnel-Token; else Authorization: Bearer.
        #[arg(long, value_name = "HEADER")]
        #[serde(deserialize_with = "text")]
        token_header: HeaderName,
        /// Allow targets, as 127.0.0.1:9000, 10.0.0.0/8:8000-8099, [2001:db8::1]:*, db.internal:5432, *.internal:443,
        /// udp:10.0.0.53:53, unix:/run/app.sock or unix:/run/apps/*. Repeatable; without it every target is refused.
        ///
        /// What is checked is the address that is dialed, and of a Unix socket the file that all symbolic links lead to. A name stands
        /// for whatever it resolves to here, except for addresses of the machine and its link (127.0.0.0/8, ::1, 169.254.0.0/16,
        /// fe80::/10) and those where clouds keep their credentials: allow these by address, or by a network that lies within them.
        #[arg(long, value_name = "[udp:]HOST:PORT|unix:PATH", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        allow: Vec<Rule>,
        /// How long resolving and dialing a target may take together [default: 10s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        dial_timeout: Span,
        /// How long open streams may go on after SIGTERM before they are reset [default: 10s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        drain: Span,
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
        /// Where the token is kept that an invited agent gets for its own [default: $STATE_DIRECTORY, or watertight in
        /// $XDG_STATE_HOME or ~/.local/state].
        #[arg(long, value_name = "DIRECTORY")]
        #[serde(deserialize_with = "path")]
        state_dir: PathBuf,
        /// The file with the secret by which the server knows this agent; else the environment variable TUNNEL_TOKEN. There is no
        /// option for the secret itself: every user of the machine could read it.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        token_file: PathBuf,
    }
}

/// Everything that an agent is started with.
#[derive(Debug)]
pub(crate) struct AgentPlan {
    /// One for each server.
    pub(crate) configs: Vec<agent::Config>,
    pub(crate) admin: Option<admin::Config>,
    pub(crate) compat_metrics: Option<Compat>,
    pub(crate) drain: Duration,
    /// What decides about it besides the options themselves.
    pub(crate) files: Vec<PathBuf>,
}

/// What takes effect while the agent runs; all else needs a new start.
pub(crate) const LIVE: &[&str] = &["allow", "token-file"];

/// The longest join line that is read, in bytes.
const LINE_MAX: u64 = 4096;

impl AgentOptions {
    /// Makes paths of the file independent of where the program is started.
    pub(crate) fn rebase(&mut self, folder: &Path) {
        rebase(&mut self.token_file, folder);
        rebase(&mut self.state_dir, folder);
        rebase(&mut self.ca_file, folder);
        rebase(&mut self.tls_cert, folder);
        rebase(&mut self.tls_key, folder);
    }

    /// Checks all options together, and reads the files that they name.
    pub(crate) fn plan(self) -> anyhow::Result<AgentPlan> {
        let links = self.links.unwrap_or(1);
        ensure!(
            (1..=LINKS_MAX).contains(&links),
            "--links {links}: write a number in 1..={LINKS_MAX}"
        );
        let dialect = self.dialect.map_or(Dialect::Native, Into::into);
        match dialect {
            Dialect::Remotedialer if links > 1 => bail!(
                "--links is for --dialect native: a remotedialer server uses one session of a name"
            ),
            Dialect::Native | Dialect::Remotedialer => {}
        }
        let admin = common::admin(self.admin, self.admin_public, self.admin_host.clone())?;
        if self.compat_metrics.is_some() && admin.is_none() {
            bail!("--compat-metrics adds to what --admin IP:PORT serves: set that too");
        }
        for (option, span) in [
            ("--dial-timeout", self.dial_timeout),
            ("--linger", self.linger),
        ] {
            let zero = span.is_some_and(|Span(span)| span.is_zero());
            ensure!(
                !zero,
                "{option} must be longer than 0s: nothing could be served"
            );
        }
        let rules = self.allow.unwrap_or_default();
        if rules.is_empty() {
            tracing::warn!("no --allow: every target will be refused");
        }
        let policy = Policy::new(rules);
        let join = self.join.as_deref().map(read_join).transpose()?;
        let name = match (self.name, join.as_ref().and_then(|join| join.name.clone())) {
            (Some(name), Some(only)) if name != only => {
                bail!("--name {name}: the join line is for an agent called {only}")
            }
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => machine()?,
        };
        let mut pins = self.server_pin.unwrap_or_default();
        if let Some(pin) = join.as_ref().and_then(|join| join.pin.as_deref()) {
            pins.push(pin.parse().context("the pin in the join line is damaged")?);
        }
        common::both(
            ("--tls-cert", "--tls-key"),
            (self.tls_cert.as_ref(), self.tls_key.as_ref()),
        )?;
        let tls = tls::Client::load(tls::ClientFiles {
            ca_file: self.ca_file,
            pins,
            certificate: self.tls_cert,
            key: self.tls_key,
            server_name: self.server_name.map(|HostName(name)| name),
        })?;
        let (servers, token, invited) = match join {
            Some(join) => {
                ensure!(
                    self.server.is_none() && self.token_file.is_none(),
                    "the join line names the server and brings a token: leave --server and --token-file away"
                );
                let keep = state::folder(self.state_dir.as_deref())?
                    .join(format!("agent-{name}@{}.token", join.server.authority()));
                let kept = keep.exists().then(|| Token::from_file(&keep)).transpose()?;
                let keep = Some(keep);
                (vec![join.server], join.token, Some(Invited { keep, kept }))
            }
            None => {
                ensure!(
                    self.state_dir.is_none(),
                    "--state-dir is for an agent that joins by a line: give that, or leave it away"
                );
                let file = self.token_file.as_deref();
                let token = secret::read(file, "--token-file", "TUNNEL_TOKEN")?;
                (self.server.unwrap_or_default(), token, None)
            }
        };
        ensure!(
            !servers.is_empty(),
            "there is no server: give --server wss://HOST:PORT/connect, or the line of `tunnel server --print-join`"
        );
        let mut configs: Vec<agent::Config> = Vec::new();
        for server in servers {
            ensure!(
                configs.iter().all(|config| config.server != server),
                "--server {server} is given twice: more links to one server are what --links is for"
            );
            let proxy = Proxy::for_server(&server, |variable| {
                let value = std::env::var_os(variable)?;
                Some(value.to_string_lossy().into_owned())
            })?;
            if let Some(proxy) = &proxy {
                tracing::info!(%server, %proxy, "the server is reached through a proxy");
            }
            let mut config =
                agent::Config::new(server, name.clone(), policy.clone(), token.clone());
            if !config.server.is_secure() && !config.server.is_local() {
                tracing::warn!(server = %config.server, "without TLS everybody on the way can read the token and the streams: use wss://");
            }
            config.proxy = proxy;
            config.tls = tls.clone();
            config.invited = invited.clone();
            config.links = links;
            config.dialect = dialect;
            config.token_header = self.token_header.clone();
            if let Some(Span(span)) = self.dial_timeout {
                config.dial_timeout = span;
            }
            common::timeouts(
                (&mut config.splice, &mut config.link),
                self.idle,
                self.tcp_keepalive,
                self.tcp_user_timeout,
            );
            if let Some(Span(span)) = self.linger {
                config.splice.linger = span;
            }
            configs.push(config);
        }
        Ok(AgentPlan {
            configs,
            admin,
            compat_metrics: self.compat_metrics.map(Into::into),
            drain: self
                .drain
                .map_or(Duration::from_secs(10), |Span(span)| span),
            files: self.token_file.into_iter().collect(),
        })
    }
}

fn read_join(line: &str) -> anyhow::Result<Join> {
    if line != "-" {
        return Ok(line.parse()?);
    }
    let mut line = String::new();
    let mut input = std::io::stdin().lock().take(LINE_MAX);
    input
        .read_to_string(&mut line)
        .context("cannot read the join line from standard input")?;
    Ok(line.parse()?)
}

/// Returns the machine's name as an agent's.
fn machine() -> anyhow::Result<String> {
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_string_lossy();
    name(&machine).map_err(|why| {
        anyhow::anyhow!("give --name NAME: the machine's name {machine:?} will not do, {why}")
    })
}
