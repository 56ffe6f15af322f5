//! `tunnel agent`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tunnel::admin::Admin;
use tunnel::agent::Agent;
use tunnel::io::scope::Scope;
use tunnel::metrics::Metrics;

use crate::cli::AgentArgs;
use crate::file::Settings;
use crate::options::{AgentOptions, AgentPlan, Options as _, warn_of_fixed};
use crate::signals::{Asked, Signals};
use crate::stdout::announce;
use crate::watch::Watch;

pub(crate) async fn run(args: AgentArgs, mut signals: Signals) -> anyhow::Result<()> {
    let file = args.config.config;
    let mut watch = Watch::new(file.iter().cloned().collect());
    let read = || {
        let (file, over) = (file.clone(), args.options.clone());
        move || {
            let new = read(file.as_ref(), &over)?;
            let plan = new.clone().plan()?;
            Ok((new, plan))
        }
    };
    let Some((mut options, plan)) = signals.read_unless_ended(read()).await? else {
        return Ok(());
    };
    watch.set(plan.files.iter().cloned().chain(file.clone()).collect());
    let metrics = Metrics::new(plan.compat_metrics).context("cannot register the counters")?;
    let agents: Vec<Agent> = plan
        .configs
        .into_iter()
        .map(|config| Agent::start(config, Some(Arc::clone(&metrics))))
        .collect();
    let admin = Scope::new();
    if let Some(config) = plan.admin {
        let counters = Admin::new(Arc::clone(&metrics));
        let inspectors = agents.iter().map(Agent::inspector);
        let port = inspectors
            .fold(counters, Admin::inspect)
            .listen(config)
            .await?;
        announce("admin", port.address())?;
        admin.spawn_interruptible(port.serve(admin.handle()));
    }
    while signals.next_while(&metrics, &mut watch).await == Asked::Reload {
        match signals.read_unless_ended(read()).await {
            Ok(None) => break,
            Ok(Some((new, plan))) => {
                reload(&agents, &plan);
                warn_of_fixed(&new, &options);
                watch.set(plan.files.into_iter().chain(file.clone()).collect());
                options = new;
            }
            Err(error) => tracing::error!(
                "the configuration is not taken, and the agent goes on with what it had: {error:#}"
            ),
        }
    }
    let drain = plan.drain;
    tracing::info!(deadline = ?drain, "draining; a second signal exits at once");
    let ends = async {
        let draining = Scope::new();
        for agent in agents {
            draining.spawn(agent.drain(drain));
        }
        draining.join().await;
        admin.end(Duration::from_secs(1)).await;
    };
    signals.or_leave_at_once(ends).await
}

fn read(file: Option<&PathBuf>, over: &AgentOptions) -> anyhow::Result<AgentOptions> {
    let file = match file {
        Some(file) => Settings::read(file)?.agent.unwrap_or_default(),
        None => AgentOptions::default(),
    };
    Ok(over.clone().over(file))
}

/// What may be dialed, and the token, take effect at once; all else needs a new start.
fn reload(agents: &[Agent], plan: &AgentPlan) {
    for (agent, config) in agents.iter().zip(&plan.configs) {
        agent.set_policy(config.policy.clone());
        agent.set_link_headers(config.link_headers.clone());
        if config.invited.is_none() {
            agent.set_token(config.token.clone());
        }
    }
    tracing::info!("the configuration was read again: what may be dialed, and the token");
}
