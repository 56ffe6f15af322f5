//! `tunnel server`.

use std::path::PathBuf;
use std::time::Duration;

use tunnel::io::tls::authority::Authority;
use tunnel::io::tls::{ClientCertificates, Files};
use tunnel::io::{clock, tls};
use tunnel::server::{Port, Server};
use tunnel::uplink::{Join, ServerUrl};

use crate::cli::ServerArgs;
use crate::file::Settings;
use crate::options::{SERVER_LIVE, ServerOptions, ServerPlan, warn_of_the_rest};
use crate::signals::{Asked, Signals};
use crate::watch::Watch;
use crate::{announce, say};

pub(crate) async fn run(args: ServerArgs, mut signals: Signals) -> anyhow::Result<()> {
    let source = Source {
        file: args.config.config,
        over: args.options,
    };
    let mut watch = Watch::new(source.file.iter().cloned().collect());
    let mut options = source.read()?;
    let ServerPlan {
        mut config,
        tls,
        join,
        drain,
        files,
    } = options.clone().plan()?;
    watch.set(source.files(files));
    config.tls = tls.as_ref().map(TlsSource::load).transpose()?;
    let pin = tls.as_ref().zip(config.tls.as_ref());
    let pin = pin.and_then(|(source, tls)| source.pin(tls));
    let server = Server::start(config).await?;
    announce("front", server.front())?;
    for (port, address) in server.ports() {
        let kind = match *port {
            Port::Forward(_) => "forward",
            Port::Socks5(_) => "socks5",
            Port::Connect(_) => "http-connect",
        };
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
        match reload(&server, &source, &options).await {
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

/// Where TLS of the front comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TlsSource {
    /// Files that somebody else cares for.
    Files(Files),
    /// An authority of one's own.
    SelfSigned {
        folder: PathBuf,
        names: Vec<String>,
        client_ca: Option<PathBuf>,
        clients: ClientCertificates,
    },
}

impl TlsSource {
    /// Reads the files; an authority of one's own makes what is missing or due.
    pub(crate) fn load(&self) -> anyhow::Result<tls::Server> {
        let files = match self {
            Self::Files(files) => files.clone(),
            Self::SelfSigned {
                folder,
                names,
                client_ca,
                clients,
            } => {
                let authority = Authority::open(&folder.join("tls"), names, clock::wall())?;
                Files {
                    client_ca: client_ca.clone(),
                    clients: *clients,
                    ..authority.files()
                }
            }
        };
        let tls = tls::Server::load(&files)?;
        if let Some(warning) = tls.warning(clock::wall()) {
            tracing::warn!(file = %files.certificate.display(), "{warning}");
        }
        Ok(tls)
    }

    /// Returns what agents must be told to trust it; certificates of others are trusted by their authorities.
    fn pin(&self, tls: &tls::Server) -> Option<String> {
        match self {
            Self::Files(_) => None,
            // The last of the chain is the authority, which stays when the server's certificate is renewed.
            Self::SelfSigned { .. } => tls.pins().last().map(ToString::to_string),
        }
    }
}

/// Whom to invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JoinPlan {
    pub(crate) name: Option<String>,
    pub(crate) lifetime: Duration,
    pub(crate) public_url: Option<ServerUrl>,
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

/// How often a certificate of one's own is looked after.
const RENEWAL: Duration = Duration::from_secs(12 * 3600);

/// Where the options come from.
struct Source {
    file: Option<PathBuf>,
    /// From the environment and the command line.
    over: ServerOptions,
}

impl Source {
    fn read(&self) -> anyhow::Result<ServerOptions> {
        let file = match &self.file {
            Some(file) => Settings::read(file)?.server.unwrap_or_default(),
            None => ServerOptions::default(),
        };
        Ok(self.over.clone().over(file))
    }

    fn files(&self, mut files: Vec<PathBuf>) -> Vec<PathBuf> {
        files.extend(self.file.clone());
        files
    }
}

/// Applies what has changed to a server that runs. If anything is wrong, nothing is applied.
async fn reload(
    server: &Server,
    source: &Source,
    before: &ServerOptions,
) -> anyhow::Result<(ServerOptions, Vec<PathBuf>)> {
    let options = source.read()?;
    let ServerPlan {
        config, tls, files, ..
    } = options.clone().plan()?;
    let tls = tls.as_ref().map(TlsSource::load).transpose()?;
    server.set_ports(config.all_ports()).await?;
    server.set_access(config.access)?;
    if tls.is_some_and(|tls| !server.replace_tls(tls)) {
        tracing::warn!("the server was started without TLS and goes on so until its next start");
    }
    warn_of_the_rest(options.differences(before), SERVER_LIVE);
    tracing::info!("the configuration was read again");
    Ok((options, files))
}
