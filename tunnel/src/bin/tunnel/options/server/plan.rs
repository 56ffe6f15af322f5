//! What the options of a server come to, checked whole.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure};
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::server::auth::roster;
use tunnel::server::config::http::{HttpListen, HttpPort, HttpSocket};
use tunnel::server::config::port;
use tunnel::server::config::port::ProxyPort;
use tunnel::server::{Config, Port};
use tunnel::uplink::ServerUrl;

use super::{ServerOptions, TlsSource};
use crate::options::common::{not_zero, set, set_limit};
use crate::options::value::{HostName, Invitee, Span, several};
use crate::options::{Options as _, state};

/// The smallest value of `--max-head`.
const HEAD_MIN: usize = 8192;

/// Everything that a server is started with.
#[derive(Debug)]
pub(crate) struct ServerPlan {
    pub(crate) config: Config,
    /// Where TLS of the front comes from; it is not in the configuration yet.
    pub(crate) tls: Option<TlsSource>,
    pub(crate) join: Option<JoinPlan>,
    pub(crate) drain: Duration,
    /// The files whose change has the configuration read again.
    pub(crate) files: Vec<PathBuf>,
}

/// Whom to invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JoinPlan {
    pub(crate) name: Option<String>,
    pub(crate) lifetime: Duration,
    pub(crate) public_url: Option<ServerUrl>,
}

impl ServerOptions {
    /// Checks all options together, and reads the files that they name.
    pub(crate) fn plan(self) -> anyhow::Result<ServerPlan> {
        self.check_zeros()?;
        let common = self.common.plan()?;
        if self.remotedialer_token_header.is_some() && self.accept_remotedialer != Some(true) {
            bail!("--remotedialer-token-header is for --accept-remotedialer: set that too");
        }
        let join = self.join()?;
        let tls = self.tls(join.is_some())?;
        let (access, shared) = self.access(join.is_some())?;
        let peers = self.peers(shared.as_ref())?;
        let listen = self.listen();
        if tls.is_none() && !listen.ip().is_loopback() {
            tracing::warn!(
                %listen,
                "without TLS everybody on the way can read tokens and streams: set --tls-cert and \
                 --tls-key, or --tls-self-signed"
            );
        }
        let mut config = Config::new(listen, access);
        config.roster = self.roster(join.is_some())?;
        config.access.set_users(self.users()?);
        self.set_ports(&mut config, tls.is_some())?;
        config.health_path = self.health_path.clone();
        config.peers = peers.map(Arc::new);
        config.admin = common.admin;
        config.compat_metrics = common.compat_metrics;
        self.set_bounds(&mut config)?;
        let accepts = self.accept_remotedialer.unwrap_or(false);
        config.remotedialer = accepts.then(|| Remotedialer {
            token_header: self.remotedialer_token_header.clone(),
        });
        let mut files = self.live_files();
        files.extend(config.roster.clone());
        Ok(ServerPlan {
            config,
            tls,
            join,
            drain: common.drain,
            files,
        })
    }

    fn check_zeros(&self) -> anyhow::Result<()> {
        for (option, count) in [
            ("--max-connections", self.max_connections),
            ("--max-handshakes", self.max_handshakes),
            ("--max-sessions", self.max_sessions),
            ("--max-replicas", self.max_replicas),
            ("--max-streams", self.max_streams),
            ("--max-flows", self.max_flows),
            ("--max-header-lines", self.max_header_lines),
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
                "--linger",
                self.common.linger,
                "every half-closed stream would be reset at once",
            ),
        ] {
            not_zero(option, span, why)?;
        }
        Ok(())
    }

    /// Sets the ports, each of which its agent must have a right to.
    fn set_ports(&self, config: &mut Config, tls: bool) -> anyhow::Result<()> {
        let login = !config.access.users().is_empty();
        let proxy = |port: &ProxyPort| ProxyPort {
            login,
            ..port.clone()
        };
        let socks5 = several(&self.socks5).map(proxy);
        let connect = several(&self.http_connect).map(proxy);
        config.ports = socks5
            .map(Port::Socks5)
            .chain(connect.map(Port::Connect))
            .chain(self.http_ports(login)?.into_iter().map(Port::from))
            .collect();
        config.forwards = several(&self.forward).cloned().collect();
        let ports = config.all_ports();
        port::validate(&ports, tls)?;
        for port in &ports {
            let listen = port.listen();
            let Some(agent) = port.agent() else {
                continue;
            };
            ensure!(
                config.access.allows_port(agent, listen),
                "{port}: agent {agent} has no right to it; add {listen} to ports of \
                 [server.agents.{agent}]"
            );
        }
        Ok(())
    }

    /// Returns the HTTP ports.
    fn http_ports(&self, login: bool) -> anyhow::Result<Vec<HttpPort>> {
        let listen = self.listen();
        let plain = self.http.iter().flatten().cloned();
        let secure = self.https.iter().flatten().cloned();
        let mut ports: Vec<_> = plain.map(|place: HttpListen| place.port(listen)).collect();
        ports.extend(secure.map(|place| HttpPort::new(place, HttpSocket::Tls)));
        if ports.is_empty() {
            for (option, is_set) in [
                ("--http-host", self.http_host.is_some()),
                ("--http-origin", self.http_origin.is_some()),
                ("--trusted-proxies", self.trusted_proxies.is_some()),
            ] {
                ensure!(
                    !is_set,
                    "{option} is about --http and --https: set one of them, or leave it away"
                );
            }
        }
        let hosts = self.http_host.iter().flatten();
        let hosts = hosts.map(|HostName(name)| name.clone());
        let public = self.public_url.iter().map(|url| url.host().to_owned());
        let hosts: Vec<_> = hosts.chain(public).collect();
        for port in &mut ports {
            port.login = login;
            port.hosts.clone_from(&hosts);
            port.origins = self.http_origin.clone().unwrap_or_default();
            port.trusted_proxies = self.trusted_proxies.clone().unwrap_or_default();
        }
        Ok(ports)
    }

    /// Sets limits and timeouts.
    fn set_bounds(&self, config: &mut Config) -> anyhow::Result<()> {
        config.limits = self.limits();
        let common = &self.common;
        common.set_timeouts(&mut config.splice, &mut config.link);
        set(&mut config.tls_handshake_timeout, self.handshake_timeout);
        set_limit(&mut config.header_timeout, self.header_timeout);
        set_limit(&mut config.keep_alive_timeout, self.keep_alive_timeout);
        set_limit(&mut config.response_timeout, self.response_timeout);
        if let Some(bytes) = self.max_head {
            ensure!(
                bytes >= HEAD_MIN,
                "--max-head must be at least {HEAD_MIN}: clients and servers rely on that much"
            );
            config.head_max = bytes;
        }
        config.header_lines_max = self.max_header_lines.unwrap_or(config.header_lines_max);
        set(&mut config.datagrams.idle, self.udp_idle);
        config.datagrams.flows_max = self.max_flows.unwrap_or(config.datagrams.flows_max);
        config.connections_max = self.max_connections.unwrap_or(config.connections_max);
        config.handshakes_max = self.max_handshakes.unwrap_or(config.handshakes_max);
        config.sessions_max = self.max_sessions.unwrap_or(config.sessions_max);
        config.replicas_max = self.max_replicas.unwrap_or(config.replicas_max);
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
        Ok(())
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
            let listen = self.listen().ip();
            ensure!(
                !listen.is_unspecified(),
                "--print-join must tell agents where to connect, and --listen {listen} is no \
                 address to reach: set --public-url wss://HOST:PORT/connect"
            );
        }
        Ok(Some(JoinPlan {
            name: name.clone(),
            lifetime,
            public_url: self.public_url.clone(),
        }))
    }

    /// Returns the file with the agents that have joined. It stays in force once there is one.
    fn roster(&self, joins: bool) -> anyhow::Result<Option<PathBuf>> {
        let wanted = joins || self.state_dir.is_some() || self.tls_self_signed == Some(true);
        let folder = wanted.then(|| state::folder(self.state_dir.as_deref()));
        let file = folder.transpose()?.map(|folder| folder.join("agents"));
        file.as_deref().map(roster::check).transpose()?;
        Ok(file)
    }
}
