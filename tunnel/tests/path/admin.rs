//! The admin port of a server and of an agent: health, sessions, streams, and refused requests.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::admin::{Admin, AdminError, Config};
use tunnel::agent::Agent;
use tunnel::io::scope::Scope;
use tunnel::metrics::Metrics;
use tunnel::server;
use tunnel::server::{Server, StartError};

use crate::rig::{LONG, PROMPT, Rig, agent_config, drain, loopback, round_trip, token, within};
use crate::world::connect;

async fn rig() -> (Rig, SocketAddr) {
    let rig = Rig::start_with(
        |server| server.admin = Some(Config::new(loopback())),
        |_| {},
    )
    .await;
    let admin = rig.server.admin().unwrap();
    (rig, admin)
}

/// Says `head` and returns the whole answer.
async fn say(admin: SocketAddr, head: &str) -> String {
    let mut caller = connect(admin).await.unwrap();
    let request = format!("{head}\r\nconnection: close\r\n\r\n");
    caller.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = caller.read_to_string(&mut answer);
    within(LONG, "the answer", read).await.unwrap();
    answer
}

async fn get(admin: SocketAddr, path: &str) -> String {
    say(admin, &format!("GET {path} HTTP/1.1\r\nhost: {admin}")).await
}

async fn json(admin: SocketAddr, path: &str) -> serde_json::Value {
    let answer = get(admin, path).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("application/json"),
        "{head}"
    );
    serde_json::from_str(body).unwrap()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_shows_its_sessions_and_streams() {
    let (rig, admin) = rig().await;
    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
    let target_text = format!("tcp/{}", rig.target.local_addr().unwrap());

    let sessions = json(admin, "/admin/sessions").await;
    let [session] = sessions["sessions"].as_array().unwrap().as_slice() else {
        panic!("{sessions}");
    };
    for (field, value) in [
        ("name", "web"),
        ("party", "agent"),
        ("dialect", "watertight.v1"),
    ] {
        assert_eq!(session[field], value, "{session}");
    }
    assert!(session["session"].as_str().unwrap().parse::<u64>().is_ok());
    assert!(session["link"].as_str().unwrap().ends_with("/0"));
    assert!(
        session["address"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    for (field, value) in [("streams", 1), ("to_peer_bytes", 1), ("from_peer_bytes", 1)] {
        assert_eq!(session[field], value, "{session}");
    }
    assert!(session["age_seconds"].as_f64().unwrap() > 0.0);

    let streams = json(admin, "/admin/streams").await;
    assert_eq!(streams["total"], 1);
    let stream = &streams["streams"][0];
    assert_eq!(stream["session"], session["session"]);
    for (field, value) in [
        ("target", target_text.as_str()),
        ("state", "open"),
        ("stream", "1"),
        ("name", "web"),
    ] {
        assert_eq!(stream[field], value, "{stream}");
    }
    assert_eq!(
        (&stream["to_peer_bytes"], &stream["from_peer_bytes"]),
        (&1.into(), &1.into())
    );
    visitor.shutdown().await.unwrap();
    within(PROMPT, "the end", drain(&mut target)).await.unwrap();
    let streams = json(admin, "/admin/streams").await;
    assert_eq!(streams["streams"][0]["state"], "finished by us");

    let page = get(admin, "/").await;
    assert!(
        page.contains("text/html") && page.contains(&target_text),
        "{page}"
    );
    assert!(
        page.contains("default-src 'none'; style-src 'unsafe-inline'"),
        "{page}"
    );
    assert!(!page.contains("<script"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_listed_up_to_their_bound() {
    let rig = Rig::start_with(
        |server| {
            server.admin = Some(Config {
                streams_max: 3,
                ..Config::new(loopback())
            });
        },
        |_| {},
    )
    .await;
    let mut pairs = Vec::new();
    for _ in 0..5 {
        pairs.push(rig.pair().await);
    }
    let streams = json(rig.server.admin().unwrap(), "/admin/streams").await;
    assert_eq!(streams["total"], 5);
    assert_eq!(streams["streams"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_questions_by_an_address_are_answered() {
    let (rig, admin) = rig().await;
    for (head, expected) in [
        ("GET /livez HTTP/1.1\r\nhost: localhost", 200),
        ("GET /livez HTTP/1.1\r\nhost: [::1]:1", 200),
        ("GET /livez HTTP/1.1\r\nhost: evil.example", 421),
        (
            "GET http://evil.example/livez HTTP/1.1\r\nhost: localhost",
            421,
        ),
        ("GET /livez HTTP/1.1", 400),
        ("POST /livez HTTP/1.1\r\nhost: localhost", 405),
        (
            "OPTIONS /metrics HTTP/1.1\r\nhost: localhost\r\norigin: http://a",
            405,
        ),
        ("GET /metrics/ HTTP/1.1\r\nhost: localhost", 404),
    ] {
        let answer = say(admin, head).await;
        assert_eq!(status(&answer), expected, "{head}: {answer}");
        assert!(
            !answer.to_lowercase().contains("access-control"),
            "{answer}"
        );
        assert!(
            answer.contains("x-content-type-options: nosniff"),
            "{answer}"
        );
    }
    let head = say(admin, "HEAD /metrics HTTP/1.1\r\nhost: localhost").await;
    assert!(status(&head) == 200 && head.ends_with("\r\n\r\n"), "{head}");
    drop(rig);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_others_reach_must_be_wanted() {
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let mut config = server::Config::new(loopback(), token());
    let mut port = Config::new(everywhere);
    config.admin = Some(port.clone());
    let error = Server::start(config.clone()).await.unwrap_err();
    assert!(
        matches!(error, StartError::Admin(AdminError::Public(_))),
        "{error}"
    );
    assert!(error.to_string().contains("admin-public"), "{error}");
    port.public = true;
    port.hosts = vec!["tunnel.internal".to_owned()];
    config.admin = Some(port);
    let server = Server::start(config).await.unwrap();
    let port = server.admin().unwrap().port();
    let admin = SocketAddr::from(([127, 0, 0, 1], port));
    let answer = say(admin, "GET /readyz HTTP/1.1\r\nhost: tunnel.internal:1").await;
    assert_eq!(status(&answer), 200, "{answer}");
    let mapped = Config::new("[::ffff:10.0.0.1]:0".parse().unwrap());
    let admin = Admin::new(Metrics::new(None).unwrap());
    assert!(matches!(
        admin.listen(mapped).await,
        Err(AdminError::Public(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_is_alive_and_not_ready() {
    let (rig, admin) = rig().await;
    assert_eq!(status(&get(admin, "/readyz").await), 200);
    let (mut visitor, mut target) = rig.pair().await;
    let Rig { server, agent, .. } = rig;
    let draining = server.drain(LONG);
    let look = async {
        loop {
            let answer = get(admin, "/readyz").await;
            if status(&answer) == 503 {
                assert!(
                    answer.ends_with("not ready: the server is draining\n"),
                    "{answer}"
                );
                break;
            }
        }
        assert_eq!(status(&get(admin, "/livez").await), 200);
        round_trip(&mut visitor, &mut target).await;
        drop((visitor, target));
    };
    within(LONG, "the drain", async { tokio::join!(draining, look) }).await;
    assert!(connect(admin).await.is_err());
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_ready_while_each_of_its_servers_is_reached() {
    let (rig, _) = rig().await;
    let metrics = Metrics::new(None).unwrap();
    // Nothing listens there.
    let gone = crate::world::TcpListener::bind(loopback()).await.unwrap();
    let mut config = agent_config(&rig.server, &[]);
    config.server = format!("ws://{}/connect", gone.local_addr().unwrap())
        .parse()
        .unwrap();
    drop(gone);
    config.backoff = (Duration::from_secs(60), Duration::from_secs(60));
    let lost = Agent::start(config, None);

    let tasks = Scope::new();
    let listen = async |admin: Admin| {
        let port = admin.listen(Config::new(loopback())).await.unwrap();
        let address = port.address();
        tasks.spawn_interruptible(port.serve(tasks.handle()));
        address
    };
    let one = Admin::new(metrics).inspect(rig.agent.inspector());
    let both = listen(one.clone().inspect(lost.inspector())).await;
    let one = listen(one).await;
    assert_eq!(status(&get(one, "/readyz").await), 200);
    let answer = get(both, "/readyz").await;
    assert!(
        status(&answer) == 503 && answer.contains("is not connected to ws://"),
        "{answer}"
    );
    assert_eq!(status(&get(both, "/livez").await), 200);

    let (mut visitor, mut target) = rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
    let sessions = json(one, "/admin/sessions").await;
    let session = &sessions["sessions"][0];
    assert_eq!(
        (&session["party"], &session["streams"]),
        (&"server".into(), &1.into())
    );
    let streams = json(one, "/admin/streams").await;
    let expected = format!("tcp/{}", rig.target.local_addr().unwrap());
    assert_eq!(streams["streams"][0]["target"], expected);
    drop((visitor, target));

    let Rig { server, agent, .. } = rig;
    within(LONG, "the drain", server.drain(Duration::ZERO)).await;
    within(LONG, "the end of the link", agent.disconnected()).await;
    assert_eq!(status(&get(one, "/readyz").await), 503);
    agent.drain(Duration::ZERO).await;
    let answer = get(one, "/readyz").await;
    assert!(answer.contains("is draining"), "{answer}");
    drop(lost);
    tasks.end(LONG).await;
}
