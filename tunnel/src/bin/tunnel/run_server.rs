//! `tunnel server`.

use std::path::PathBuf;
use std::time::Duration;

use tunnel::io::tls;
use tunnel::server::config::HttpSocket;
use tunnel::server::{Listen, Port, Server};
use tunnel::uplink::Join;

use crate::cli::ServerArgs;
use crate::file::Settings;
use crate::open_files;
use crate::options::{JoinPlan, Options as _, ServerOptions, ServerPlan, TlsSource, warn_of_fixed};
use crate::signals::{Asked, Signals};
use crate::stdout::{announce, say};
use crate::watch::Watch;

pub(crate) async fn run(args: ServerArgs, mut signals: Signals) -> anyhow::Result<()> {
    let source = Source {
        file: args.config.config,
        over: args.options,
    };
    let mut watch = Watch::new(source.file.iter().cloned().collect());
    let Some(read) = signals.read_unless_ended(source.reader()).await? else {
        return Ok(());
    };
    let Read {
        mut options,
        plan,
        tls,
    } = read;
    let ServerPlan {
        mut config,
        tls: tls_source,
        join,
        drain,
        files,
    } = plan;
    watch.set(source.files(files));
    config.tls = tls;
    let pin = tls_source.as_ref().zip(config.tls.as_ref());
    let pin = pin.and_then(|(source, tls)| source.pin(tls));
    open_files::warn_if_few(
        config.connections_max,
        config.sessions_max,
        config.handshakes_max,
    );
    let server = Server::start(config).await?;
    announce("front", server.front())?;
    for (kind, address) in announced(&server) {
        announce(kind, address)?;
    }
    if let Some(admin) = server.admin() {
        announce("admin", admin)?;
    }
    if let Some(join) = join {
        print_join(&server, &join, pin)?;
    }
    loop {
        let asked = signals.next_while(server.counters(), &mut watch);
        match tokio::time::timeout(RENEWAL, asked).await {
            Ok(Asked::Reload) | Err(_) => {}
            Ok(Asked::End) => break,
        }
        let reloaded = match signals.read_unless_ended(source.reader()).await {
            Ok(None) => break,
            Ok(Some(read)) => reload(&server, read, &options).await,
            Err(error) => Err(error),
        };
        match reloaded {
            Ok((new, files)) => {
                watch.set(source.files(files));
                options = new;
            }
            Err(error) => tracing::error!(
                "the configuration is not taken, and the server goes on with what it had: {error:#}"
            ),
        }
    }
    tracing::info!(deadline = ?drain, "draining; a second signal exits at once");
    signals.or_leave_at_once(server.drain(drain)).await
}

/// Returns the ports that are announced: those with sockets of their own.
fn announced(server: &Server) -> Vec<(&'static str, Listen)> {
    let ports = server.ports().into_iter();
    let announced = ports.filter_map(|(port, address)| {
        let kind = match &*port {
            Port::Forward(_) => "forward",
            Port::Socks5(_) => "socks5",
            Port::Connect(_) => "http-connect",
            Port::Http(http) if http.socket == HttpSocket::Shared => return None,
            Port::Http(_) => "http",
        };
        Some((kind, address))
    });
    announced.collect()
}

/// Prints the line by which an agent can join.
fn print_join(server: &Server, plan: &JoinPlan, pin: Option<String>) -> anyhow::Result<()> {
    let url = match &plan.public_url {
        Some(url) => url.clone(),
        None => {
            let scheme = if server.is_secure() { "wss" } else { "ws" };
            format!("{scheme}://{}/connect", server.front()).parse()?
        }
    };
    let join = Join {
        server: url,
        token: server.invite(plan.name.as_deref(), plan.lifetime)?,
        pin,
        name: plan.name.clone(),
    };
    tracing::info!(
        lifetime = %humantime::format_duration(plan.lifetime),
        "start the agent with the line below: tunnel agent 'LINE' --allow HOST:PORT"
    );
    say(format_args!("{}", join.line()))
}

/// How often the certificate of the server's own authority is renewed if it is due.
const RENEWAL: Duration = Duration::from_secs(12 * 3600);

/// Where the options come from.
#[derive(Clone)]
struct Source {
    file: Option<PathBuf>,
    /// From the environment and the command line.
    over: ServerOptions,
}

/// What was read from it, and from the files that the options name.
struct Read {
    options: ServerOptions,
    plan: ServerPlan,
    tls: Option<tls::Server>,
}

impl Source {
    /// Returns a function that reads everything and may block.
    fn reader(&self) -> impl FnOnce() -> anyhow::Result<Read> + Send + 'static {
        let Self { file, over } = self.clone();
        move || {
            let file = match &file {
                Some(file) => Settings::read(file)?.server.unwrap_or_default(),
                None => ServerOptions::default(),
            };
            let options = over.over(file);
            let plan = options.clone().plan()?;
            let tls = plan.tls.as_ref().map(TlsSource::load).transpose()?;
            Ok(Read { options, plan, tls })
        }
    }

    fn files(&self, mut files: Vec<PathBuf>) -> Vec<PathBuf> {
        files.extend(self.file.clone());
        files
    }
}

/// Applies what has changed to a server that runs. If anything is wrong, nothing is applied.
async fn reload(
    server: &Server,
    read: Read,
    before: &ServerOptions,
) -> anyhow::Result<(ServerOptions, Vec<PathBuf>)> {
    let Read { options, plan, tls } = read;
    let ServerPlan { config, files, .. } = plan;
    let mut known = announced(server);
    server.replace(config.all_ports(), config.access).await?;
    for port in announced(server) {
        match known.iter().position(|known| *known == port) {
            Some(at) => drop(known.swap_remove(at)),
            None => announce(port.0, &port.1).unwrap_or_else(|error| {
                tracing::warn!(kind = port.0, address = %port.1, "listening; {error:#}");
            }),
        }
    }
    if let Some(peers) = config.peers {
        server.set_peer_token(peers.token.clone());
    }
    if tls.is_some_and(|tls| !server.replace_tls(tls)) {
        tracing::warn!("the server was started without TLS and goes on so until its next start");
    }
    warn_of_fixed(&options, before);
    tracing::info!("the configuration was read again");
    Ok((options, files))
}
