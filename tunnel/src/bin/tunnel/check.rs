//! `tunnel check`: would it start?

use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::file::Settings;
use crate::say;

pub(crate) fn check(file: &Path) -> anyhow::Result<()> {
    let settings = Settings::read(file)?;
    ensure!(
        settings.server.is_some() || settings.agent.is_some(),
        "{} has neither a table [server] nor [agent]: nothing would start",
        file.display()
    );
    let place = |table: &str| format!("{}: [{table}]", file.display());
    if let Some(server) = settings.server {
        let config = server.plan().with_context(|| place("server"))?.config;
        say(format_args!(
            "server: listens on {}, {} forwards, {} agents with tokens of their own",
            config.listen,
            config.forwards.len(),
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
