//! The bounds of the shell, each of them reached. Those of the cores are reached in their own
//! tests.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::agent::Agent;
use tunnel::server::Port;

use crate::rig::{PROMPT, Rig, agent_config, round_trip, until, with_http, within};
use crate::world::connect;

/// A waiting visitor is served when another one leaves. It is not refused.
#[tokio::test(flavor = "multi_thread")]
async fn connections_max_makes_the_next_visitor_wait() {
    let rig = Rig::start_with(|server| server.connections_max = 3, |_| {}).await;
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

/// Three visitors hold all that each budget of theirs allows. The agent and a new one come back.
#[tokio::test(flavor = "multi_thread")]
async fn visitors_do_not_keep_agents_from_coming_back() {
    let rig = Rig::start_with(
        |server| {
            server.connections_max = 3;
            server.handshakes_max = 3;
            server.ports = vec![Port::Socks5("127.0.0.1:0=web".parse().unwrap())];
            with_http(server);
        },
        |agent| agent.backoff = (Duration::from_millis(20), Duration::from_millis(20)),
    )
    .await;
    let (front, target) = (rig.server.front(), rig.target.local_addr().unwrap());
    let socks5 = rig.server.ports()[1].1.inet().unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        let (visitor, end) = rig.pair().await;
        held.extend([visitor, end]);
        held.push(connect(socks5).await.unwrap());
        // A visitor of the front that is served and kept.
        let mut visitor = connect(front).await.unwrap();
        let request = format!("GET /client/web/http/{target}/ HTTP/1.1\r\nHost: localhost\r\n\r\n");
        visitor.write_all(request.as_bytes()).await.unwrap();
        let (mut target, _) = within(PROMPT, "the dial", rig.target.accept())
            .await
            .unwrap();
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n!";
        target.read_u8().await.unwrap();
        target.write_all(response).await.unwrap();
        within(PROMPT, "the response", async {
            while visitor.read_u8().await.unwrap() != b'!' {}
        })
        .await;
        held.push(visitor);
    }
    // Connections to the front that say nothing, or never enough.
    for _ in 0..3 {
        let mut silent = connect(front).await.unwrap();
        silent
            .write_all(b"GET /connect HTTP/1.1\r\n")
            .await
            .unwrap();
        held.push(silent);
    }
    let begun = Instant::now();
    let mut config = agent_config(&rig.server, &[]);
    config.name = "other".to_owned();
    let other = Agent::start(config, None);
    within(PROMPT, "another agent", other.connected()).await;
    println!("an agent is in after {:?}", begun.elapsed());
    rig.agent.drain(PROMPT).await;
    let again = Agent::start(agent_config(&rig.server, &[]), None);
    within(PROMPT, "the agent again", again.connected()).await;
    // One more of each port waits or is told, and no other port is the worse for it.
    let mut visitor = connect(front).await.unwrap();
    let request = format!("GET /client/web/http/{target}/ HTTP/1.1\r\nHost: localhost\r\n\r\n");
    visitor.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    let told = within(PROMPT, "the refusal", visitor.read_exact(&mut head)).await;
    assert_eq!((told.unwrap(), &head), (12, b"HTTP/1.1 503"));
    drop(held);
    other.drain(PROMPT).await;
    again.drain(PROMPT).await;
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
