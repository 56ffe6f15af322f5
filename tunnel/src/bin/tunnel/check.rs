//! `tunnel check`: would it start?

use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::file::Settings;
use crate::options::TlsSource;
use crate::stdout::say;

pub(crate) fn check(file: &Path) -> anyhow::Result<()> {
    let settings = Settings::read(file)?;
    ensure!(
        settings.server.is_some() || settings.agent.is_some(),
        "{} has neither a table [server] nor [agent]: nothing would start",
        file.display()
    );
    let place = |table: &str| format!("{}: [{table}]", file.display());
    if let Some(server) = settings.server {
        let plan = server.plan().with_context(|| place("server"))?;
        if let Some(tls @ TlsSource::Files(_)) = &plan.tls {
            tls.load().with_context(|| place("server"))?;
        }
        let config = plan.config;
        say(format_args!(
            "server: listens on {}{}, {} more ports, {} agents with tokens of their own",
            config.listen,
            if plan.tls.is_some() { " by TLS" } else { "" },
            config.all_ports().len(),
            config.access.names().count()
        ))?;
    }
    if let Some(agent) = settings.agent {
        for config in agent.plan().with_context(|| place("agent"))?.configs {
            say(format_args!(
                "agent: {} of {}, {} links",
                config.name, config.server, config.links
            ))?;
        }
    }
    Ok(())
}
