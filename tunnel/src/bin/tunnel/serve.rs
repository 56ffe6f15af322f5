//! `tunnel server`.

use std::path::PathBuf;

use tunnel::server::{Port, Server};

use crate::announce;
use crate::cli::ServerArgs;
use crate::file::Settings;
use crate::options::{SERVER_LIVE, ServerOptions, ServerPlan, warn_of_the_rest};
use crate::signals::{Asked, Signals};
use crate::watch::Watch;

pub(crate) async fn serve(args: ServerArgs, mut signals: Signals) -> anyhow::Result<()> {
    let source = Source {
        file: args.config.config,
        over: args.options,
    };
    let mut watch = Watch::new(source.file.iter().cloned().collect());
    let mut options = source.read()?;
    let ServerPlan {
        config,
        drain,
        files,
    } = options.clone().plan()?;
    watch.set(source.files(files));
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
    if let Some(metrics) = server.metrics() {
        announce("metrics", metrics)?;
    }
    while signals.next_while(server.counters(), &mut watch).await == Asked::Reload {
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
    let ServerPlan { config, files, .. } = options.clone().plan()?;
    server.set_ports(config.all_ports()).await?;
    server.set_access(config.access)?;
    warn_of_the_rest(options.differences(before), SERVER_LIVE);
    tracing::info!("the configuration was read again");
    Ok((options, files))
}
