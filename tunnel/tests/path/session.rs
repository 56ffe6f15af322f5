//! Sessions: agents that come, go, come twice, and drain.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::agent::Agent;
use tunnel::io::token::Token;
use tunnel::replicas::Replicas;
use tunnel::server::Server;

use crate::rig::{
    LONG, PROMPT, Rig, agent_config, drain, loopback, refused, server_config, until, within,
};
use crate::world::{TcpListener, connect};

async fn echo(visitor: &mut TcpStream, target: &mut TcpStream) {
    visitor.write_all(b"ping").await.unwrap();
    let mut data = [0; 4];
    within(PROMPT, "the bytes", target.read_exact(&mut data))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_the_wrong_token_does_not_get_in() {
    let target = TcpListener::bind(loopback()).await.unwrap();
    let server = Server::start(server_config(target.local_addr().unwrap()))
        .await
        .unwrap();
    let mut config = agent_config(&server, &[]);
    config.token = Token::new("wrong", "test").unwrap();
    let agent = Agent::start(config, None);
    let connected = tokio::time::timeout(Duration::from_millis(300), agent.connected()).await;
    assert!(connected.is_err());
    let counters = server.counters().text().unwrap();
    assert!(!counters.contains("watertight_agents_refused_total{status=\"401\"} 0"));
    assert!(
        counters.contains("watertight_agents_refused_total{status=\"401\"}"),
        "{counters}"
    );
    agent.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_dropped_resets_its_streams_and_one_that_comes_back_serves() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    echo(&mut visitor, &mut target).await;
    let Rig {
        server,
        agent,
        target: listener,
    } = rig;
    drop(agent);
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    let _ = within(PROMPT, "the reset", drain(&mut target)).await;
    until("the end of the session", || server.tasks() == 0).await;
    refused(server.forwards()[0]).await;

    let agent = Agent::start(
        agent_config(&server, &[listener.local_addr().unwrap().to_string()]),
        None,
    );
    within(LONG, "the return", agent.connected()).await;
    until("the registration", || server.has_agent("web")).await;
    let rig = Rig {
        server,
        agent,
        target: listener,
    };
    let (mut visitor, mut target) = rig.pair().await;
    echo(&mut visitor, &mut target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_outlives_its_server() {
    let rig = Rig::start().await;
    let front = rig.server.front();
    let address = rig.target.local_addr().unwrap();
    let Rig {
        server,
        agent,
        target,
    } = rig;
    within(LONG, "the drain", server.drain(Duration::ZERO)).await;
    within(LONG, "the loss", agent.disconnected()).await;
    let mut config = server_config(address);
    config.listen = front;
    let server = Server::start(config).await.unwrap();
    within(LONG, "the return", agent.connected()).await;
    until("the registration", || server.has_agent("web")).await;
    let rig = Rig {
        server,
        agent,
        target,
    };
    let (mut visitor, mut target) = rig.pair().await;
    echo(&mut visitor, &mut target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_session_replaces_the_older_at_once() {
    let rig = Rig::start_with(
        |server| server.access.set_replicas(Replicas::Replace),
        |_| {},
    )
    .await;
    let (mut visitor, mut target) = rig.pair().await;
    echo(&mut visitor, &mut target).await;
    let newer = Agent::start(
        agent_config(&rig.server, &[rig.target.local_addr().unwrap().to_string()]),
        None,
    );
    within(LONG, "connecting", newer.connected()).await;
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    let _ = within(PROMPT, "the reset", drain(&mut target)).await;
    let (mut visitor, mut target) = rig.pair().await;
    echo(&mut visitor, &mut target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_server_waits_for_its_streams() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    echo(&mut visitor, &mut target).await;
    let Rig {
        server,
        agent: _agent,
        ..
    } = rig;
    let forward = server.forwards()[0];
    let drained = tokio::spawn(server.drain(LONG));
    // A visitor that came in the last moment would be one more to wait for, so the port is asked
    // and not the listener.
    until("the listeners' end", || {
        std::net::TcpListener::bind(forward).is_ok()
    })
    .await;
    target.write_all(b"goodbye").await.unwrap();
    drop(target);
    assert_eq!(
        within(PROMPT, "the end", drain(&mut visitor))
            .await
            .unwrap(),
        7
    );
    assert!(!drained.is_finished());
    drop(visitor);
    within(PROMPT, "the drain", drained).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_deadline_resets_what_is_left() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    echo(&mut visitor, &mut target).await;
    let Rig { server, agent, .. } = rig;
    within(PROMPT, "the drain", server.drain(Duration::from_millis(50))).await;
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    let _ = within(PROMPT, "the reset", drain(&mut target)).await;
    within(PROMPT, "the agent's drain", agent.drain(Duration::ZERO)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_agent_takes_no_streams_and_waits_for_those_it_has() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    echo(&mut visitor, &mut target).await;
    let Rig {
        server,
        agent,
        target: listener,
    } = rig;
    let drained = tokio::spawn(agent.drain(LONG));
    within(PROMPT, "the refusal", async {
        loop {
            let Ok(mut late) = connect(server.forwards()[0]).await else {
                return;
            };
            let answer = tokio::time::timeout(Duration::from_millis(50), late.read(&mut [0])).await;
            if matches!(answer, Ok(Err(_))) {
                return;
            }
        }
    })
    .await;
    // One that came before the drain waits in the backlog; the drain would wait for it, too.
    drop(listener);
    assert!(!drained.is_finished());
    drop(visitor);
    let _ = drain(&mut target).await;
    drop(target);
    within(PROMPT, "the drain", drained).await.unwrap();
}
