//! The bounds of the shell, each of them reached. Those of the cores are reached in their own
//! tests.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tunnel::agent::Agent;

use crate::rig::{PROMPT, Rig, agent_config, round_trip, until, within};

/// A waiting visitor is served when another one leaves. It is not refused.
#[tokio::test(flavor = "multi_thread")]
async fn connections_max_makes_the_next_visitor_wait() {
    // The front holds one ready. The agent's link counts as a session once it is up.
    let rig = Rig::start_with(|server| server.connections_max = 4, |_| {}).await;
    let mut pairs = Vec::new();
    for _ in 0..3 {
        pairs.push(rig.pair().await);
    }
    let mut waiting = rig.visitor().await;
    waiting.write_all(b"?").await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), rig.target.accept()).await;
    assert!(early.is_err(), "a fourth visitor is served");
    for (visitor, target) in &mut pairs {
        round_trip(visitor, target).await;
    }
    pairs.pop();
    let target = within(PROMPT, "the turn", rig.target.accept()).await;
    drop((waiting, target));
    pairs.clear();
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_max_turns_further_agents_away() {
    let rig = Rig::start_with(|server| server.sessions_max = 1, |_| {}).await;
    let mut config = agent_config(&rig.server, &[]);
    config.name = "other".to_owned();
    config.backoff = (Duration::from_millis(20), Duration::from_millis(20));
    let other = Agent::start(config, None);
    let early = tokio::time::timeout(Duration::from_millis(200), other.connected()).await;
    assert!(early.is_err(), "a second agent is served");
    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
    drop((visitor, target));
    rig.agent.drain(PROMPT).await;
    within(PROMPT, "the turn", other.connected()).await;
    until("the registration", || rig.server.has_agent("other")).await;
    other.drain(PROMPT).await;
}
