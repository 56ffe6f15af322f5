//! Access: tokens of each agent, rotation, revocation, rights, invitations.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::agent::{Agent, Invited};
use tunnel::io::token::{Digest, Token};
use tunnel::policy::Policy;
use tunnel::server::Server;
use tunnel::server::auth::access::{Access, Grant, Rights};

use crate::rig::{
    LONG, PROMPT, Rig, agent_config, drain, loopback, refused, server_config, until, within,
};
use crate::world::TcpListener;

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
