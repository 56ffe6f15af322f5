//! Access: tokens of each agent, rotation, revocation, rights, invitations.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::agent::{Agent, Invited};
use tunnel::io::token::{Digest, Token};
use tunnel::metrics::Metrics;
use tunnel::policy::Policy;
use tunnel::server::auth::access::{Access, Grant, Rights};
use tunnel::server::{Port, ReplaceError, Server};

use crate::rig::{
    LONG, PROMPT, Rig, agent_config, connect_fails, drain, loopback, refused, round_trip,
    server_config, until, within,
};
use crate::world::{TcpListener, connect};

fn grant(secrets: &[&str]) -> Access {
    let mut access = Access::default();
    let grant = Grant {
        tokens: secrets.iter().map(|s| Digest::of(s.as_bytes())).collect(),
        rights: Rights::default(),
        ..Grant::default()
    };
    access.grant("web".to_owned(), grant);
    access
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_rotated_without_a_break_and_a_revoked_one_cuts_its_sessions() {
    let rig = Rig::start_with(
        |config| config.access = grant(&["secret"]),
        |config| config.links = 2,
    )
    .await;
    until("both links", || rig.agent.links() == 2).await;
    let (mut visitor, mut target) = rig.pair().await;
    rig.server.set_access(grant(&["secret", "next"])).unwrap();
    visitor.write_all(b"ping").await.unwrap();
    let mut data = [0; 4];
    within(PROMPT, "the bytes", target.read_exact(&mut data))
        .await
        .unwrap();
    assert_eq!(rig.agent.links(), 2);

    rig.server.set_access(grant(&["next"])).unwrap();
    let cut = Duration::from_secs(2);
    assert!(within(cut, "the reset", drain(&mut visitor)).await.is_err());
    let _ = within(cut, "the reset", drain(&mut target)).await;
    within(cut, "the end of the sessions", rig.agent.disconnected()).await;
    until("the end of the sessions", || !rig.server.has_agent("web")).await;
    refused(rig.server.forwards()[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_bound_what_is_asked_of_an_agent_that_would_do_more() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    let mut access = grant(&["secret"]);
    let mut rights = Grant {
        tokens: vec![Digest::of(b"secret")],
        rights: Rights {
            targets: Some(Policy::new(vec!["127.0.0.2:*".parse().unwrap()])),
            ports: None,
            peers: None,
        },
        ..Grant::default()
    };
    access.grant("web".to_owned(), rights.clone());
    rig.server.set_access(access.clone()).unwrap();
    refused(rig.server.forwards()[0]).await;
    // Open streams go on.
    visitor.write_all(b"ping").await.unwrap();
    let mut data = [0; 4];
    within(PROMPT, "the bytes", target.read_exact(&mut data))
        .await
        .unwrap();
    rights.rights.targets = Some(Policy::new(vec!["127.0.0.1:*".parse().unwrap()]));
    access.grant("web".to_owned(), rights);
    rig.server.set_access(access).unwrap();
    rig.pair().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invited_agent_joins_with_all_its_links_and_comes_back_by_a_token_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (roster, kept) = (folder.path().join("agents"), folder.path().join("token"));
    let target = TcpListener::bind(loopback()).await.unwrap();
    let address = target.local_addr().unwrap();
    let config = || {
        let mut config = server_config(address);
        config.access = Access::default();
        config.roster = Some(roster.clone());
        config
    };
    let server = Server::start(config()).await.unwrap();
    let invitation = server.invite(None, Duration::from_secs(60)).unwrap();
    let invited = |server: &Server, token: &Token| {
        let mut config = agent_config(server, &[address.to_string()]);
        config.token = token.clone();
        config.links = 3;
        config.invited = Some(Invited {
            keep: Some(kept.clone()),
            kept: None,
        });
        config
    };
    let agent = Agent::start(invited(&server, &invitation), None);
    within(LONG, "joining", agent.connected()).await;
    until("all links", || agent.links() == 3).await;
    let own = Token::from_file(&kept).unwrap();
    assert!(own != invitation);
    for secret in [own.expose(), invitation.expose()] {
        let roster = std::fs::read_to_string(&roster).unwrap();
        assert!(!roster.contains(secret), "{roster}");
    }
    // It is used up.
    let mut second = invited(&server, &invitation);
    second.name = "other".to_owned();
    let second = Agent::start(second, None);
    let connected = tokio::time::timeout(Duration::from_millis(300), second.connected()).await;
    assert!(connected.is_err());
    second.drain(Duration::ZERO).await;
    agent.drain(PROMPT).await;
    server.drain(PROMPT).await;

    // Both ends have what they need for another life.
    let server = Server::start(config()).await.unwrap();
    let mut config = agent_config(&server, &[address.to_string()]);
    config.token = own;
    let agent = Agent::start(config, None);
    within(LONG, "coming back", agent.connected()).await;
    // Removing the line from the roster revokes the agent.
    std::fs::write(&roster, "").unwrap();
    server.set_access(Access::default()).unwrap();
    within(PROMPT, "the end of the session", agent.disconnected()).await;
    agent.drain(PROMPT).await;
    server.drain(PROMPT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invited_agent_takes_no_name_from_one_that_is_connected() {
    let rig = Rig::start().await;
    let invitation = rig.server.invite(None, Duration::from_secs(60)).unwrap();
    let mut config = agent_config(&rig.server, &[]);
    config.token = invitation;
    config.invited = Some(Invited::default());
    let second = Agent::start(config, None);
    let connected = tokio::time::timeout(Duration::from_millis(300), second.connected()).await;
    assert!(connected.is_err());
    assert_eq!(rig.agent.links(), 1);
    second.drain(Duration::ZERO).await;
}

/// Shakes hands as an agent does, and goes before it has read the answer.
async fn join_and_lose_the_answer(front: SocketAddr, name: &str, invitation: &Token) {
    let mut link = connect(front).await.unwrap();
    let request = format!(
        "GET /connect HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: watertight.v1\r\nx-tunnel-id: {name}\r\n\
         authorization: Bearer {}\r\n\r\n",
        invitation.expose()
    );
    link.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    within(PROMPT, "the answer", link.read_exact(&mut head))
        .await
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_whose_answer_was_lost_can_be_tried_again() {
    let rig = Rig::start().await;
    for name in [None, Some("home")] {
        let agent_name = name.unwrap_or("anyone");
        let invitation = rig.server.invite(name, Duration::from_secs(60)).unwrap();
        let front = rig.server.front();
        join_and_lose_the_answer(front, agent_name, &invitation).await;
        until("its end", || !rig.server.has_agent(agent_name)).await;
        let mut config = agent_config(&rig.server, &[]);
        config.name = agent_name.to_owned();
        config.token = invitation.clone();
        config.invited = Some(Invited::default());
        // Its second link comes by the token that the first was given.
        config.links = 2;
        let agent = Agent::start(config, None);
        within(LONG, "joining", agent.connected()).await;
        until("both links", || agent.links() == 2).await;
        // Now the invitation is used up, for this agent too.
        let mut config = agent_config(&rig.server, &[]);
        config.name = agent_name.to_owned();
        config.token = invitation;
        config.invited = Some(Invited::default());
        let metrics = Metrics::new(None).unwrap();
        let late = Agent::start(config, Some(Arc::clone(&metrics)));
        connect_fails(&metrics, "refused").await;
        assert_eq!(late.links(), 0);
        late.drain(Duration::ZERO).await;
        agent.drain(Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_and_access_are_replaced_both_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let roster = folder.path().join("agents");
    let rig = Rig::start_with(|config| config.roster = Some(roster.clone()), |_| {}).await;
    let before = rig.server.ports();
    let other: Port = "127.0.0.1:0=web".parse().map(Port::Socks5).unwrap();
    std::fs::write(&roster, "nonsense\n").unwrap();
    let replaced = rig.server.replace(vec![other.clone()], Access::default());
    let error = replaced.await.unwrap_err();
    assert!(matches!(error, ReplaceError::Roster(_)), "{error}");
    assert_eq!(rig.server.ports(), before);
    // A port that cannot be had leaves the access as it is.
    std::fs::write(&roster, "").unwrap();
    let taken = rig.target.local_addr().unwrap();
    let taken = Port::Socks5(format!("{taken}=web").parse().unwrap());
    let replaced = rig
        .server
        .replace(vec![other.clone(), taken], Access::default());
    let error = replaced.await.unwrap_err();
    assert!(matches!(error, ReplaceError::Ports(_)), "{error}");
    assert_eq!(rig.server.ports(), before);
    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
    rig.server
        .replace(vec![other], Access::default())
        .await
        .unwrap();
    within(PROMPT, "the end", rig.agent.disconnected()).await;
    assert_eq!(rig.server.ports().len(), 1);
}

#[tokio::test]
async fn bounds_with_which_nothing_moves_are_refused() {
    for zero in [
        (|config| config.mux.session_send_buffer = 0) as fn(&mut tunnel::server::Config),
        |config| config.mux.send_buffer = 0,
        |config| config.mux.window_initial = 0,
        |config| config.remotedialer_mux.session_send_buffer = 0,
    ] {
        let mut config = server_config(SocketAddr::from(([127, 0, 0, 1], 9)));
        zero(&mut config);
        let error = Server::start(config).await.unwrap_err();
        assert!(error.to_string().contains("must not be 0"), "{error}");
    }
    let server = Rig::start().await.server;
    let mut config = agent_config(&server, &[]);
    config.mux.session_send_buffer = 0;
    let error = config.check().unwrap_err().to_string();
    assert!(
        error.contains("session_send_buffer must not be 0"),
        "{error}"
    );
    let agent = Agent::start(config, None);
    let connected = tokio::time::timeout(Duration::from_millis(300), agent.connected()).await;
    assert!(connected.is_err());
}
