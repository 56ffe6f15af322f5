//! Several agents of one name: replicas, rolling updates, and agents that do not know of each
//! other.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::agent;
use tunnel::agent::Agent;
use tunnel::io::token::{Digest, Token};
use tunnel::metrics::Metrics;
use tunnel::replicas::Replicas;
use tunnel::server::auth::access::{Access, Grant};
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::server::{Config, Server};
use tunnel::wire::Dialect;

use crate::child::{Process, until as until_blocking};
use crate::rig::{
    LONG, PROMPT, agent_config, connect_fails, drain, loopback, round_trip, server_config, until,
    within,
};
use crate::world::{Pace, Relay, TcpListener, connect};

const DIALECTS: [Dialect; 2] = [Dialect::Native, Dialect::Remotedialer];

/// A server whose forward leads to the agents "web", and the target of all of them.
struct Scene {
    server: Server,
    target: TcpListener,
}

impl Scene {
    async fn start(replicas: Replicas, change: impl FnOnce(&mut Config)) -> Self {
        let target = TcpListener::bind(loopback()).await.unwrap();
        let mut config = server_config(target.local_addr().unwrap());
        config.remotedialer = Some(Remotedialer::default());
        config.access.set_replicas(replicas);
        change(&mut config);
        let server = Server::start(config).await.unwrap();
        Self { server, target }
    }

    fn target(&self) -> SocketAddr {
        self.target.local_addr().unwrap()
    }

    fn start_agent(&self, change: impl FnOnce(&mut agent::Config)) -> Agent {
        let mut config = agent_config(&self.server, &[self.target().to_string()]);
        config.backoff = (Duration::from_millis(10), Duration::from_millis(50));
        change(&mut config);
        Agent::start(config, Some(Metrics::new(None).unwrap()))
    }

    /// Starts an agent and waits until the name has so many sessions.
    async fn agent(&self, sessions: usize, change: impl FnOnce(&mut agent::Config)) -> Agent {
        let agent = self.start_agent(change);
        within(LONG, "connecting", agent.connected()).await;
        self.has_sessions(sessions).await;
        agent
    }

    async fn has_sessions(&self, count: usize) {
        let line = format!("watertight_agent_sessions{{agent=\"web\"}} {count}\n");
        until(&line, || self.text().contains(&line)).await;
    }

    fn text(&self) -> String {
        self.server.counters().text().unwrap()
    }

    async fn visitor(&self) -> TcpStream {
        connect(self.server.forwards()[0]).await.unwrap()
    }

    /// A stream on which a byte has gone each way.
    async fn pair(&self) -> (TcpStream, TcpStream) {
        let mut visitor = self.visitor().await;
        let accepted = within(PROMPT, "the dial", self.target.accept());
        let (mut target, _) = accepted.await.unwrap();
        round_trip(&mut visitor, &mut target).await;
        (visitor, target)
    }
}

fn streams(agent: &Agent) -> u64 {
    let text = agent.counters().unwrap().text().unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("watertight_streams "));
    line.unwrap().parse().unwrap()
}

fn in_dialect(dialect: Dialect) -> impl Fn(&mut agent::Config) {
    move |config| config.dialect = dialect
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_cuts_no_stream() {
    for dialect in DIALECTS {
        let scene = Scene::start(Replicas::Share, |_| {}).await;
        let older = scene.agent(1, in_dialect(dialect)).await;
        let (mut visitor, mut target) = scene.pair().await;
        let newer = scene.agent(2, in_dialect(dialect)).await;
        // The long response goes on, and what begins now goes to the newer one.
        round_trip(&mut visitor, &mut target).await;
        let (mut next, mut next_target) = scene.pair().await;
        assert_eq!((streams(&older), streams(&newer)), (1, 1));
        // Neither takes the place of the other again and again.
        tokio::time::sleep(Duration::from_millis(300)).await;
        round_trip(&mut visitor, &mut target).await;
        round_trip(&mut next, &mut next_target).await;

        let left = tokio::spawn(older.drain(LONG));
        for _ in 0..10 {
            let (mut visitor, mut target) = scene.pair().await;
            round_trip(&mut visitor, &mut target).await;
        }
        round_trip(&mut visitor, &mut target).await;
        drop((visitor, target));
        within(PROMPT, "the drain", left).await.unwrap();
        scene.has_sessions(1).await;
        round_trip(&mut next, &mut next_target).await;
        scene.pair().await;
        assert!(scene.text().contains("watertight_agent_flaps_total 0\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_may_leave_first() {
    for dialect in DIALECTS {
        let scene = Scene::start(Replicas::Share, |_| {}).await;
        let older = scene.agent(1, in_dialect(dialect)).await;
        let newer = scene.agent(2, in_dialect(dialect)).await;
        let (mut visitor, _target) = scene.pair().await;
        assert_eq!((streams(&older), streams(&newer)), (0, 1));
        drop(newer);
        scene.has_sessions(1).await;
        let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
        assert!(end.is_err() || dialect == Dialect::Remotedialer);
        let _pair = scene.pair().await;
        assert_eq!(streams(&older), 1);
    }
}

/// A stream that the frozen agent did not answer is opened again. Remotedialer's dialect has no
/// answer to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn l8_a_visitor_of_a_frozen_agent_is_served_by_another_of_its_name() {
    let scene = Scene::start(Replicas::Share, |_| {}).await;
    let older = scene.agent(1, |_| {}).await;
    let mut relay = None;
    let newer = scene.agent(2, |config| relay = Some(Relay::before(config)));
    let _newer = newer.await;
    relay.as_ref().unwrap().set(Pace::Stopped);
    let began = Instant::now();
    let mut visitor = scene.visitor().await;
    let target = format!("tcp/{}", scene.target());
    let dialer = scene.server.dialer("web");
    let dialed = within(LONG, "the other dial", dialer.dial(target.as_str()));
    let both = async { [scene.target.accept().await, scene.target.accept().await] };
    let both = within(LONG, "the dials", both);
    let (dialed, [one, other]) = tokio::join!(dialed, both);
    let _dialed = dialed.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4));
    visitor.write_all(b"?").await.unwrap();
    let (mut one, mut other) = (one.unwrap().0, other.unwrap().0);
    let mut bytes = ([0], [0]);
    let either = async {
        tokio::select! {
            read = one.read(&mut bytes.0) => read,
            read = other.read(&mut bytes.1) => read,
        }
    };
    let read = within(PROMPT, "the visitor's byte", either).await;
    assert_eq!(read.unwrap(), 1);
    assert_eq!(streams(&older), 2);
    scene.has_sessions(2).await;
}

/// Visitors come all the time, and every one of them is served.
#[tokio::test(flavor = "multi_thread")]
async fn no_visitor_is_refused_while_agents_come_and_leave() {
    let scene = Scene::start(Replicas::Share, |_| {}).await;
    let mut agent = scene.agent(1, |_| {}).await;
    for _ in 0..5 {
        let newer = scene.agent(2, |_| {}).await;
        let left = tokio::spawn(std::mem::replace(&mut agent, newer).drain(LONG));
        for _ in 0..50 {
            scene.pair().await;
        }
        within(PROMPT, "the drain", left).await.unwrap();
        // The newest leaves, so the server learns by its refusal or by its going away.
        let newest = scene.agent(2, |_| {}).await;
        let left = tokio::spawn(newest.drain(LONG));
        for _ in 0..50 {
            scene.pair().await;
        }
        within(PROMPT, "the drain", left).await.unwrap();
        scene.has_sessions(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_full_leaves_streams_to_the_others() {
    let scene = Scene::start(Replicas::Share, |config| config.mux.max_streams = 1).await;
    let older = scene.agent(1, |_| {}).await;
    let newer = scene.agent(2, |_| {}).await;
    let _pairs = [scene.pair().await, scene.pair().await];
    assert_eq!((streams(&older), streams(&newer)), (1, 1));
    crate::rig::refused(scene.server.forwards()[0]).await;
}

/// Long before it is given up, and without a byte from it.
#[tokio::test(flavor = "multi_thread")]
async fn l8_a_frozen_agent_is_passed_over_for_another_of_its_name() {
    for dialect in DIALECTS {
        for replicas in [Replicas::Share, Replicas::Spread] {
            let scene = Scene::start(replicas, |_| {}).await;
            let older = scene.agent(1, in_dialect(dialect)).await;
            let mut relay = None;
            let frozen = scene.agent(2, |config| {
                config.dialect = dialect;
                relay = Some(Relay::before(config));
            });
            let _frozen = frozen.await;
            // It was heard of a while ago: the next stream to it asks for a sign of life.
            tokio::time::sleep(Duration::from_millis(1100)).await;
            let relay = relay.unwrap();
            relay.set(Pace::Stopped);
            let lost = [scene.visitor().await, scene.visitor().await];
            tokio::time::sleep(Duration::from_millis(1300)).await;
            let began = Instant::now();
            while let Ok(Ok(_)) =
                tokio::time::timeout(Duration::from_millis(100), scene.target.accept()).await
            {
            }
            let mut pairs = Vec::new();
            for _ in 0..10 {
                pairs.push(scene.pair().await);
            }
            assert!(began.elapsed() < Duration::from_secs(2));
            assert!(streams(&older) >= 10);
            scene.has_sessions(2).await;
            drop(lost);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_spread_over_agents_of_one_name() {
    for dialect in DIALECTS {
        let scene = Scene::start(Replicas::Spread, |_| {}).await;
        let one = scene.agent(1, in_dialect(dialect)).await;
        let _first = [scene.pair().await, scene.pair().await];
        let two = scene.agent(2, in_dialect(dialect)).await;
        let mut pairs = Vec::new();
        for _ in 0..6 {
            pairs.push(scene.pair().await);
        }
        assert_eq!((streams(&one), streams(&two)), (4, 4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_is_refused_while_the_first_lives() {
    for dialect in DIALECTS {
        let scene = Scene::start(Replicas::Refuse, |_| {}).await;
        let mut relay = None;
        let first = scene.agent(1, |config| {
            config.dialect = dialect;
            relay = Some(Relay::before(config));
        });
        let _first = first.await;
        let (mut visitor, mut target) = scene.pair().await;
        let second = scene.start_agent(in_dialect(dialect));
        connect_fails(second.counters().unwrap(), "refused").await;
        until("the count", || {
            let text = scene.text();
            !text.contains("watertight_agents_refused_total{status=\"409\"} 0\n")
        })
        .await;
        round_trip(&mut visitor, &mut target).await;
        assert_eq!(second.links(), 0);
        // A frozen agent does not keep the name.
        relay.as_ref().unwrap().set(Pace::Stopped);
        within(LONG, "the succession", second.connected()).await;
        scene.has_sessions(1).await;
        let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
        assert!(end.is_err() || dialect == Dialect::Remotedialer);
        scene.pair().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_has_only_so_many_agents() {
    let scene = Scene::start(Replicas::Share, |config| config.replicas_max = 2).await;
    let _one = scene.agent(1, |_| {}).await;
    // The links of one agent count as one.
    let _two = scene.agent(4, |config| config.links = 3).await;
    let third = scene.start_agent(|_| {});
    connect_fails(third.counters().unwrap(), "refused").await;
    let none = "watertight_limit_rejections_total{limit=\"replicas\"} 0\n";
    assert!(!scene.text().contains(none));
    scene.has_sessions(4).await;
}

/// With `replace` two agents end each other for ever, which is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_flaps_is_counted() {
    let scene = Scene::start(Replicas::Replace, |_| {}).await;
    let agents = [scene.start_agent(|_| {}), scene.start_agent(|_| {})];
    until("the count", || {
        let text = scene.text();
        !text.contains("watertight_agent_flaps_total 0\n")
    })
    .await;
    drop(agents);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_agents_only_the_one_whose_token_is_revoked_ends() {
    let access = |secrets: &[&str]| {
        let mut access = Access::default();
        access.set_replicas(Replicas::Refuse);
        let grant = Grant {
            tokens: secrets.iter().map(|s| Digest::of(s.as_bytes())).collect(),
            replicas: Some(Replicas::Spread),
            ..Grant::default()
        };
        access.grant("web".to_owned(), grant);
        access
    };
    let both = access(&["old", "new"]);
    let scene = Scene::start(Replicas::Share, |config| config.access = both).await;
    let with = |secret: &'static str| {
        move |config: &mut agent::Config| config.token = Token::new(secret, "test").unwrap()
    };
    let old = scene.agent(1, with("old")).await;
    let (mut visitor, _target) = scene.pair().await;
    let new = scene.agent(2, with("new")).await;
    let (mut other, mut other_target) = scene.pair().await;
    assert_eq!((streams(&old), streams(&new)), (1, 1));
    scene.server.set_access(access(&["new"])).unwrap();
    let end = within(PROMPT, "the reset", drain(&mut visitor)).await;
    assert!(end.is_err());
    scene.has_sessions(1).await;
    round_trip(&mut other, &mut other_target).await;
    for _ in 0..3 {
        scene.pair().await;
    }
}

/// Real processes, one of which is stopped by a signal.
#[test]
fn a_stopped_process_is_passed_over() {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    let target = crate::world::of_the_world(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = target.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for visitor in target.incoming() {
            let mut visitor = crate::world::of_the_world(visitor.unwrap());
            std::thread::spawn(move || {
                let mut byte = [0];
                while visitor.read_exact(&mut byte).is_ok() && visitor.write_all(&byte).is_ok() {}
            });
        }
    });
    let forward = format!("127.0.0.1:0=web/tcp/{address}");
    let mut server = Process::start(&["server", "--listen", "127.0.0.1:0", "--forward", &forward]);
    let front = server.listening("front");
    let port = server.listening("forward");
    let url = format!("ws://{front}/connect");
    let agent = || {
        Process::start(&[
            "agent", "--name", "web", "--server", &url, "--allow", &address,
        ])
    };
    let visit = |limit: Duration| {
        let mut visitor = crate::world::of_the_world(TcpStream::connect(&port).unwrap());
        visitor.set_read_timeout(Some(limit)).unwrap();
        visitor.write_all(b"?").is_ok() && visitor.read_exact(&mut [0]).is_ok()
    };
    let _older = agent();
    until_blocking("the first agent", || visit(LONG));
    let newer = agent();
    std::thread::sleep(Duration::from_secs(2));
    newer.freeze();
    visit(Duration::from_millis(1500));
    for _ in 0..10 {
        assert!(visit(Duration::from_secs(1)));
    }
}
