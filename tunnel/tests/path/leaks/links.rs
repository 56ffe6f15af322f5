//! Links that break, freeze, are replaced, or never come about.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::agent;
use tunnel::agent::Agent;
use tunnel::replicas::Replicas;
use tunnel::server::auth::access::Access;
use tunnel::server::{Forward, Server};

use crate::rig::{
    LONG, PROMPT, Rig, agent_config, broken, drain, fill, loopback, round_trip, server_config,
    token, until, within,
};
use crate::world::{Pace, Relay, TcpListener, connect};

/// The server, an agent behind a relay, and the relay.
async fn rig_behind_relay(silence: Duration) -> (Rig, Relay) {
    let brisk = |config: &mut tunnel::mux::native::Config| {
        config.ping_interval = silence / 4;
        config.silence = silence;
    };
    let mut relay = None;
    let rig = Rig::start_with(
        |server| brisk(&mut server.mux),
        |agent| {
            brisk(&mut agent.mux);
            agent.backoff.0 = Duration::from_millis(1);
            relay = Some(Relay::before(agent));
        },
    )
    .await;
    (rig, relay.unwrap())
}

/// A target that is never asked for.
fn nowhere() -> SocketAddr {
    SocketAddr::new(loopback().ip(), 9)
}

fn another_agent(rig: &Rig, change: impl FnOnce(&mut agent::Config)) -> Agent {
    let mut config = agent_config(&rig.server, &[rig.target.local_addr().unwrap().to_string()]);
    change(&mut config);
    Agent::start(config, None)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_swallows_everything_is_given_up_by_both_ends() {
    let (rig, relay) = rig_behind_relay(Duration::from_millis(500)).await;
    let mut pairs = Vec::new();
    for _ in 0..20 {
        let (mut visitor, mut target) = rig.pair().await;
        round_trip(&mut visitor, &mut target).await;
        pairs.push((visitor, target));
    }
    relay.set(Pace::Stopped);
    until("the end at the server", || !rig.server.has_agent("web")).await;
    within(PROMPT, "the end at the agent", rig.agent.disconnected()).await;
    for (mut visitor, mut target) in pairs {
        broken(&mut visitor, &mut target).await;
    }
    relay.cut();
    relay.set(Pace::Free);
    within(LONG, "the return", rig.agent.connected()).await;
    until("the registration", || rig.server.has_agent("web")).await;
    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_agent_is_replaced_at_once() {
    let (rig, relay) = rig_behind_relay(LONG).await;
    let mut access = Access::from(token());
    access.set_replicas(Replicas::Replace);
    rig.server.set_access(access).unwrap();
    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
    relay.set(Pace::Stopped);
    let began = Instant::now();
    let newer = another_agent(&rig, |_| {});
    within(PROMPT, "connecting", newer.connected()).await;
    let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
    assert!(end.is_err());
    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
    assert!(began.elapsed() < Duration::from_secs(2));
    // It wakes up: what it holds for the old session must not wait for its own deadline.
    within(PROMPT, "the loss", relay.cut_off(&rig.agent)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_agent_holds_up_no_other() {
    let silence = Duration::from_secs(1);
    let mut forwards = Vec::new();
    let rig = Rig::start_with(
        |server| {
            let target = server.forwards[0].target.clone();
            server.mux.silence = silence;
            server.forwards.push(Forward {
                listen: loopback().into(),
                agent: "frozen".to_owned(),
                target,
            });
            forwards = server.forwards.clone();
        },
        |agent| agent.mux.ping_interval = silence / 4,
    )
    .await;
    let mut relay = None;
    let frozen = another_agent(&rig, |config| {
        config.name = "frozen".to_owned();
        config.mux.silence = silence;
        relay = Some(Relay::before(config));
    });
    within(LONG, "connecting", frozen.connected()).await;
    until("the registration", || rig.server.has_agent("frozen")).await;
    let mut stuck = Vec::new();
    for _ in 0..32 {
        let visitor = connect(rig.server.forwards()[1]).await.unwrap();
        stuck.push((visitor, rig.target.accept().await.unwrap().0));
    }
    relay.as_ref().unwrap().set(Pace::Stopped);
    join_all(stuck.iter_mut().map(|(visitor, _)| fill(visitor))).await;
    let mut slowest = Duration::ZERO;
    // Through the death of the frozen session and the resets of its streams.
    let end = Instant::now() + 2 * silence;
    while Instant::now() < end {
        let began = Instant::now();
        let (mut visitor, mut target) = rig.pair().await;
        round_trip(&mut visitor, &mut target).await;
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    assert!(!rig.server.has_agent("frozen"));
    for (mut visitor, _) in stuck {
        let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
        assert!(end.is_err());
    }
}

/// Heartbeats every millisecond, so that ends of sessions meet them.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_break_amid_heartbeats_come_back() {
    let (rig, relay) = rig_behind_relay(Duration::from_secs(2)).await;
    let newer = another_agent(&rig, |config| {
        config.mux.ping_interval = Duration::from_millis(1);
        config.name = "other".to_owned();
    });
    for _ in 0..30 {
        within(LONG, "the loss", relay.cut_off(&rig.agent)).await;
        within(LONG, "the return", rig.agent.connected()).await;
        until("the registration", || rig.server.has_agent("web")).await;
        let (mut visitor, mut target) = rig.pair().await;
        round_trip(&mut visitor, &mut target).await;
    }
    within(PROMPT, "the drain", newer.drain(Duration::ZERO)).await;
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_link_ends_all_its_streams() {
    let (rig, relay) = rig_behind_relay(LONG).await;
    let mut pairs = Vec::new();
    for _ in 0..500 {
        let (mut visitor, mut target) = rig.pair().await;
        // A dial that is called off is no reset.
        round_trip(&mut visitor, &mut target).await;
        pairs.push((visitor, target));
    }
    relay.cut();
    for (mut visitor, mut target) in pairs {
        broken(&mut visitor, &mut target).await;
    }
    within(LONG, "the return", rig.agent.connected()).await;
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_turned_away_waits_longer_each_time() {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let server = Server::start(server_config(nowhere())).await.unwrap();
    let mut config = agent_config(&server, &[]);
    let url = format!("ws://{}/connect", listener.local_addr().unwrap());
    config.server = url.parse().unwrap();
    let _agent = Agent::start(config, None);
    let mut attempts = 0;
    let end = tokio::time::Instant::now() + Duration::from_secs(2);
    while let Ok(accepted) = tokio::time::timeout_at(end, listener.accept()).await {
        drop(accepted.unwrap());
        attempts += 1;
    }
    assert!((2..60).contains(&attempts), "{attempts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_finishes_its_handshake_is_given_up() {
    for answer in ["", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: webs"] {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let server = Server::start(server_config(nowhere())).await.unwrap();
        let mut config = agent_config(&server, &[]);
        let url = format!("ws://{}/connect", listener.local_addr().unwrap());
        config.server = url.parse().unwrap();
        config.connect_timeout = Duration::from_millis(200);
        let _agent = Agent::start(config, None);
        for _ in 0..3 {
            let (mut agent, _) = within(LONG, "the attempt", listener.accept())
                .await
                .unwrap();
            agent.write_all(answer.as_bytes()).await.unwrap();
            let _ = within(PROMPT, "the end", drain(&mut agent)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_never_finishes_its_handshake_is_let_go() {
    let mut config = server_config(nowhere());
    config.header_timeout = Some(Duration::from_millis(200));
    let server = Server::start(config).await.unwrap();
    for request in ["", "GET /connect HTTP/1.1\r\nHost: a\r\nUpgr"] {
        let mut agent = connect(server.front()).await.unwrap();
        agent.write_all(request.as_bytes()).await.unwrap();
        let _ = within(PROMPT, "the end", agent.read_to_end(&mut Vec::new())).await;
    }
    until("the end of everything", || server.tasks() == 0).await;
}
