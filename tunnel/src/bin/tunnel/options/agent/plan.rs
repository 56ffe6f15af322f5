//! What the options of an agent come to.

use std::io::{BufRead as _, Read as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tunnel::admin;
use tunnel::agent::{Config, Invited};
use tunnel::io::tls;
use tunnel::io::token::{Digest, Token};
use tunnel::metrics::Compat;
use tunnel::policy::Policy;
use tunnel::uplink::proxy::Proxy;
use tunnel::uplink::{Join, LinkHeaders, ServerUrl};
use tunnel::wire::Dialect;
use tunnel::wire::handshake::LINKS_MAX;

use super::AgentOptions;
use crate::options::common::{both, not_zero, set};
use crate::options::value::{HostName, Name};
use crate::options::{Options as _, secret, state};

/// Everything that an agent is started with.
#[derive(Debug)]
pub(crate) struct AgentPlan {
    /// One for each server.
    pub(crate) configs: Vec<Config>,
    pub(crate) admin: Option<admin::Config>,
    pub(crate) compat_metrics: Option<Compat>,
    pub(crate) drain: Duration,
    /// The files whose change has the configuration read again.
    pub(crate) files: Vec<PathBuf>,
}

/// The servers to connect to, and what the agent shows them.
struct Uplinks {
    servers: Vec<ServerUrl>,
    token: Token,
    invited: Option<Invited>,
}

/// The longest name of a file in bytes (`NAME_MAX` of Linux).
const FILE_NAME_MAX: usize = 255;

/// The longest join line that is read, in bytes.
const LINE_MAX: u64 = 4096;

impl AgentOptions {
    /// Checks all options together, and reads the files that they name.
    pub(crate) fn plan(self) -> anyhow::Result<AgentPlan> {
        let (links, dialect) = self.links()?;
        let common = self.common.plan()?;
        for (option, span) in [
            ("--dial-timeout", self.dial_timeout),
            ("--linger", self.common.linger),
        ] {
            not_zero(option, span, "nothing could be served")?;
        }
        let policy = self.policy();
        let join = self.join.as_deref().map(read_join).transpose()?;
        let name = self.agent_name(join.as_ref())?;
        let tls = self.tls(join.as_ref())?;
        let uplinks = self.uplinks(join, &name)?;
        let headers = self.link_header.as_deref().map(LinkHeaders::from_file);
        let headers = headers.transpose()?.unwrap_or_default();
        let mut configs: Vec<Config> = Vec::new();
        for server in uplinks.servers {
            ensure!(
                configs.iter().all(|config| config.server != server),
                "--server {server} is given twice: more links to one server are what --links is for"
            );
            let proxy = proxy(&server)?;
            let token = uplinks.token.clone();
            let mut config = Config::new(server, name.clone(), policy.clone(), token);
            warn_without_tls(&config.server);
            config.proxy = proxy;
            config.tls = tls.clone();
            config.invited = uplinks.invited.clone();
            config.links = links;
            config.dialect = dialect;
            config.token_header = self.token_header.clone();
            config.link_headers = headers.clone();
            set(&mut config.dial_timeout, self.dial_timeout);
            let common = &self.common;
            common.set_timeouts(&mut config.splice, &mut config.link);
            configs.push(config);
        }
        Ok(AgentPlan {
            configs,
            admin: common.admin,
            compat_metrics: common.compat_metrics,
            drain: common.drain,
            files: self.live_files(),
        })
    }

    fn links(&self) -> anyhow::Result<(u8, Dialect)> {
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
            Dialect::Native | Dialect::Remotedialer => Ok((links, dialect)),
        }
    }

    fn policy(&self) -> Policy {
        let rules = self.allow.clone().unwrap_or_default();
        if rules.is_empty() {
            tracing::warn!("no --allow: every target will be refused");
        }
        Policy::new(rules)
    }

    fn agent_name(&self, join: Option<&Join>) -> anyhow::Result<String> {
        let name = self.name.as_ref().map(|Name(name)| name);
        match (name, join.and_then(|join| join.name.as_ref())) {
            (Some(name), Some(only)) if name != only => {
                bail!("--name {name}: the join line is for an agent called {only}")
            }
            (Some(name), _) | (None, Some(name)) => Ok(name.clone()),
            (None, None) => machine(),
        }
    }

    fn tls(&self, join: Option<&Join>) -> anyhow::Result<tls::Client> {
        let mut pins = self.server_pin.clone().unwrap_or_default();
        if let Some(pin) = join.and_then(|join| join.pin.as_deref()) {
            pins.push(pin.parse().context("the pin in the join line is damaged")?);
        }
        both(
            ("--tls-cert", "--tls-key"),
            (self.tls_cert.as_ref(), self.tls_key.as_ref()),
        )?;
        let server_name = self.server_name.as_ref();
        Ok(tls::Client::load(tls::ClientFiles {
            ca_file: self.ca_file.clone(),
            pins,
            certificate: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            server_name: server_name.map(|HostName(name)| name.clone()),
        })?)
    }

    fn uplinks(&self, join: Option<Join>, name: &str) -> anyhow::Result<Uplinks> {
        let Some(join) = join else {
            ensure!(
                self.state_dir.is_none(),
                "--state-dir is for an agent that joins by a line: give that, or leave it away"
            );
            let file = self.token_file.as_deref();
            let token = secret::read(file, "--token-file", "TUNNEL_TOKEN")?;
            let servers = self.server.clone().unwrap_or_default();
            ensure!(
                !servers.is_empty(),
                "there is no server: give --server wss://HOST:PORT/connect, or the line of \
                 `tunnel server --print-join`"
            );
            return Ok(Uplinks {
                servers,
                token,
                invited: None,
            });
        };
        ensure!(
            self.server.is_none() && self.token_file.is_none(),
            "the join line names the server and brings a token: leave --server and --token-file \
             away"
        );
        let keep = state::folder(self.state_dir.as_deref())?
            .join(token_file(name, &join.server.authority()));
        let kept = keep.exists().then(|| Token::from_file(&keep)).transpose()?;
        let keep = Some(keep);
        Ok(Uplinks {
            servers: vec![join.server],
            token: join.token,
            invited: Some(Invited { keep, kept }),
        })
    }
}

fn proxy(server: &ServerUrl) -> anyhow::Result<Option<Proxy>> {
    let proxy = Proxy::for_server(server, |variable| {
        let value = std::env::var_os(variable)?;
        Some(value.to_string_lossy().into_owned())
    })?;
    if let Some(proxy) = &proxy {
        tracing::info!(%server, %proxy, "the server is reached through a proxy");
    }
    Ok(proxy)
}

fn warn_without_tls(server: &ServerUrl) {
    if !server.is_secure() && !server.is_local() {
        tracing::warn!(
            %server,
            "without TLS everybody on the way can read the token and the streams: use wss://"
        );
    }
}

fn read_join(line: &str) -> anyhow::Result<Join> {
    if line != "-" {
        return Ok(line.parse()?);
    }
    // It can be read once only; a reload plans with the same line.
    static INPUT: Mutex<Option<String>> = Mutex::new(None);
    let mut input = INPUT.lock().unwrap_or_else(PoisonError::into_inner);
    let line = match &mut *input {
        Some(line) => line,
        unread => {
            let mut line = String::new();
            let mut input = std::io::stdin().lock().take(LINE_MAX);
            input
                .read_line(&mut line)
                .context("cannot read the join line from standard input")?;
            unread.insert(line)
        }
    };
    Ok(line.parse()?)
}

/// Returns the name of the file with the token of an agent. A longer one than file systems take
/// ends with a digest.
fn token_file(name: &str, server: &str) -> String {
    let file = format!("agent-{name}@{server}.token");
    if file.len() <= FILE_NAME_MAX {
        return file;
    }
    let digest = Digest::of(file.as_bytes()).to_string().replace(':', "-");
    let short: String = name.chars().take(64).collect();
    format!("agent-{short}@{digest}.token")
}

/// Returns the machine's name as an agent's.
fn machine() -> anyhow::Result<String> {
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_string_lossy();
    let name = machine.parse().map(|Name(name)| name);
    name.map_err(|why| {
        anyhow::anyhow!("give --name NAME: the machine's name {machine:?} will not do, {why}")
    })
}
