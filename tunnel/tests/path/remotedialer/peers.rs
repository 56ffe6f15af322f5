//! Our server and its peers: here another of ours.

mod scripted;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::agent::Agent;
use tunnel::io::token::Token;
use tunnel::metrics::{Compat, Metrics};
use tunnel::server;
use tunnel::server::Server;
use tunnel::server::auth::access::{Grant, Rights};
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::server::auth::peers::Peers;
use tunnel::wire::Dialect;

use crate::rig::{
    LONG, PROMPT, agent_config, drain, fill, left, loopback, pattern, refused, reset, round_trip,
    server_config, sum, until, within,
};
use crate::world::{TcpListener, connect};

/// Reserves an address, so that a server has a name before it listens.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from(([127, high | 0x80, low, last], 8123))
}

fn peers(id: &str, table: &[(&str, SocketAddr)]) -> Peers {
    let table = table
        .iter()
        .map(|(id, address)| format!("{id}=ws://{address}/connect").parse().unwrap());
    let token = Token::new("shared", "test").unwrap();
    let mut peers = Peers::new(id.to_owned(), token, table.collect());
    peers.backoff = (Duration::from_millis(5), Duration::from_millis(50));
    peers
}

/// A server that is a peer, with a forward to `target` of the agent "web".
fn config(listen: SocketAddr, target: SocketAddr, peers: Peers) -> server::Config {
    let mut config = server_config(target);
    config.listen = listen;
    config.remotedialer = Some(Remotedialer::default());
    config.peers = Some(Arc::new(peers));
    config
}

async fn agent(server: &Server, target: SocketAddr, dialect: Dialect) -> Agent {
    let mut config = agent_config(server, &[target.to_string()]);
    config.dialect = dialect;
    let counters = Metrics::new(Some(Compat::Remotedialer)).unwrap();
    let agent = Agent::start(config, Some(counters));
    within(LONG, "connecting", agent.connected()).await;
    agent
}

fn count(server: &Server, name: &str) -> u64 {
    sum(&server.counters().text().unwrap(), name)
}

/// East has the agent, west has the visitors.
struct Two {
    east: Server,
    west: Server,
    agent: Agent,
    target: TcpListener,
}

impl Two {
    async fn start(dialect: Dialect) -> Self {
        Self::start_with(dialect, |_| {}).await
    }

    async fn start_with(dialect: Dialect, east_has: impl FnOnce(&mut server::Config)) -> Self {
        let target = TcpListener::bind(loopback()).await.unwrap();
        let address = target.local_addr().unwrap();
        let (east, west) = (own_address(), own_address());
        let mut east_config = config(east, address, peers("east", &[("west", west)]));
        east_has(&mut east_config);
        let west_config = config(west, address, peers("west", &[("east", east)]));
        let east = Server::start(east_config).await.unwrap();
        let west = Server::start(west_config).await.unwrap();
        let agent = agent(&east, address, dialect).await;
        until("the announcement", || west.has_agent("web")).await;
        Self {
            east,
            west,
            agent,
            target,
        }
    }

    async fn visitor(&self) -> TcpStream {
        let forward = self.west.forwards()[0];
        connect(forward).await.unwrap()
    }

    async fn pair(&self) -> (TcpStream, TcpStream) {
        let visitor = self.visitor().await;
        let dial = within(LONG, "the dial", self.target.accept());
        (visitor, dial.await.unwrap().0)
    }

    /// The same, and a byte has gone each way: the stream is open everywhere.
    async fn open_pair(&self) -> (TcpStream, TcpStream) {
        let (mut visitor, mut target) = self.pair().await;
        let exchange = async {
            visitor.write_all(b"?").await?;
            target.read_exact(&mut [0]).await?;
            target.write_all(b"!").await?;
            visitor.read_exact(&mut [0]).await
        };
        within(LONG, "a byte each way", exchange).await.unwrap();
        (visitor, target)
    }

    /// Nothing is left but the links, each with the task that drives it and the task that accepts
    /// its streams.
    async fn at_rest(&self) {
        let (east, west) = (&self.east, &self.west);
        until("coming to rest", || {
            left(&east.counters().text().unwrap(), "connections") == 0
                && left(&west.counters().text().unwrap(), "connections") == 0
                && east.tasks() <= 6
                && west.tasks() <= 4
        })
        .await;
        within(PROMPT, "the agent's streams", self.agent.idle()).await;
        for server in [east, west] {
            let text = server.counters().text().unwrap();
            assert!(text.contains("watertight_streams 0"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_whose_token_is_replaced_are_apart_until_both_have_the_new_one() {
    let two = Two::start(Dialect::Native).await;
    let (mut visitor, _target) = two.open_pair().await;
    let next = || Token::new("next", "test").unwrap();
    two.west
        .set_peer_token(Token::new("shared", "test").unwrap());
    assert!(two.west.has_agent("web"), "the token is the same");

    two.west.set_peer_token(next());
    within(PROMPT, "the reset", drain(&mut visitor))
        .await
        .unwrap_err();
    until("the end of the session", || !two.west.has_agent("web")).await;
    let refused = "watertight_agents_refused_total{status=\"401\"} ";
    until("an attempt with the old token", || {
        two.west.counters().text().unwrap().contains(refused)
    })
    .await;
    assert!(!two.west.has_agent("web"));

    two.east.set_peer_token(next());
    until("the announcement", || two.west.has_agent("web")).await;
    two.open_pair().await;
}

const DIALECTS: [Dialect; 2] = [Dialect::Native, Dialect::Remotedialer];

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_either_dialect_is_reached_through_a_peer() {
    for dialect in DIALECTS {
        let two = Two::start(dialect).await;
        let (mut visitor, target) = two.pair().await;
        let (mut read, mut write) = target.into_split();
        let echo = tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
        let sent = pattern(8 * 1024 * 1024);
        let mut received = vec![0; sent.len()];
        let (mut read, mut write) = visitor.split();
        let both = async { tokio::join!(write.write_all(&sent), read.read_exact(&mut received)) };
        let (written, read) = within(LONG, "the echo", both).await;
        assert!(written.is_ok() && read.is_ok() && received == sent);
        drop(visitor);
        assert!(within(LONG, "the end", echo).await.unwrap().is_ok());
        two.at_rest().await;
        // A stream is counted where it is opened: as the peer's there, as the agent's here.
        let counted = |server: &Server, client: &str| {
            let text = server.counters().text().unwrap();
            let mut lines = text
                .lines()
                .filter(|line| line.contains("add_connections{"));
            lines.all(|line| {
                line.contains(&format!("clientkey=\"{client}\"")) && line.ends_with(" 1")
            })
        };
        assert!(counted(&two.west, "east") && counted(&two.east, "web"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_goes_through_behind_the_bytes_before_it() {
    for dialect in DIALECTS {
        let two = Two::start(dialect).await;
        for _ in 0..20 {
            let (mut visitor, mut target) = two.pair().await;
            visitor.write_all(b"ask").await.unwrap();
            target.read_exact(&mut [0; 3]).await.unwrap();
            target.write_all(&[7; 300_000]).await.unwrap();
            drop(target);
            let read = within(PROMPT, "the end", drain(&mut visitor)).await;
            assert_eq!(read.unwrap(), 300_000);
        }
        let (mut visitor, mut target) = two.pair().await;
        visitor.write_all(&[7; 300_000]).await.unwrap();
        visitor.shutdown().await.unwrap();
        let read = within(PROMPT, "the end", drain(&mut target)).await;
        assert_eq!(read.unwrap(), 300_000);
        drop(target);
        two.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_on_either_end_is_told_to_the_other() {
    for dialect in DIALECTS {
        let two = Two::start(dialect).await;
        let (visitor, mut target) = two.open_pair().await;
        reset(visitor);
        assert!(
            within(PROMPT, "the reset", drain(&mut target))
                .await
                .is_err()
        );
        let (mut visitor, target) = two.open_pair().await;
        reset(target);
        assert!(
            within(PROMPT, "the reset", drain(&mut visitor))
                .await
                .is_err()
        );
        // Neither end reads, and every buffer on the way is full.
        let (mut visitor, mut target) = two.pair().await;
        fill(&mut visitor).await;
        fill(&mut target).await;
        reset(visitor);
        assert!(
            within(PROMPT, "the reset", drain(&mut target))
                .await
                .is_err()
        );
        two.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_goes_on_for_a_visitor_that_left_is_given_up() {
    let two = Two::start(Dialect::Native).await;
    let (mut visitor, mut target) = two.pair().await;
    let endless =
        tokio::spawn(async move { while target.write_all(&[7; 64 * 1024]).await.is_ok() {} });
    visitor.shutdown().await.unwrap();
    // No half-close between servers: what comes after the visitor's end is dropped, and not for
    // long.
    within(LONG, "the end of the target", endless)
        .await
        .unwrap();
    two.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_dialed_is_refused_at_the_visitors_server() {
    for dialect in DIALECTS {
        let mut two = Two::start(dialect).await;
        two.target = TcpListener::bind(loopback()).await.unwrap();
        refused(two.west.forwards()[0]).await;
        two.at_rest().await;
    }
}

/// The ports of other servers are not among those of the agent's grant.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_ports_is_not_asked_for_the_visitors_of_peers() {
    for (peers, reached) in [(None, false), (Some(true), true)] {
        let two = Two::start_with(Dialect::Native, |config| {
            let rights = Rights {
                targets: None,
                ports: Some(vec!["127.0.0.1:0".parse().unwrap()]),
                peers,
            };
            let grant = Grant {
                tokens: vec![crate::rig::token().digest()],
                rights,
                ..Grant::default()
            };
            config.access.grant("web".to_owned(), grant);
        })
        .await;
        if reached {
            two.open_pair().await;
        } else {
            refused(two.west.forwards()[0]).await;
        }
        two.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_leaves_is_not_asked_for_any_more() {
    let two = Two::start(Dialect::Native).await;
    let (mut visitor, _target) = two.pair().await;
    let Two {
        east, west, agent, ..
    } = two;
    within(LONG, "the drain", agent.drain(Duration::ZERO)).await;
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    until("the announcement", || !west.has_agent("web")).await;
    assert!(!east.has_agent("web"));
}

/// The other server is told of the name once, and of its end with the last agent.
#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_one_name_are_one_to_a_peer() {
    for dialect in DIALECTS {
        let two = Two::start(dialect).await;
        let (mut visitor, mut target) = two.open_pair().await;
        let second = agent(&two.east, two.target.local_addr().unwrap(), dialect).await;
        let sessions = |count: usize| {
            let line = format!("watertight_agent_sessions{{agent=\"web\"}} {count}\n");
            let text = two.east.counters().text().unwrap();
            text.contains(&line)
        };
        until("the second session", || sessions(2)).await;
        // What the older one carries goes on, and what begins now goes to the newer one.
        round_trip(&mut visitor, &mut target).await;
        let _newer = two.open_pair().await;
        drop(second);
        until("the end of the second", || sessions(1)).await;
        assert!(two.west.has_agent("web"));
        round_trip(&mut visitor, &mut target).await;
        two.open_pair().await;
        let Two { west, agent, .. } = two;
        drop(agent);
        until("the withdrawal", || !west.has_agent("web")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_server_lets_streams_of_its_peers_end_and_is_reached_again_later() {
    let two = Two::start(Dialect::Remotedialer).await;
    let (mut visitor, mut target) = two.pair().await;
    visitor.write_all(b"ask").await.unwrap();
    target.read_exact(&mut [0; 3]).await.unwrap();
    let Two {
        east, west, agent, ..
    } = two;
    let front = east.front();
    let drained = tokio::spawn(east.drain(LONG));
    until("the withdrawal", || !west.has_agent("web")).await;
    refused(west.forwards()[0]).await;
    target.write_all(b"answer").await.unwrap();
    drop(target);
    assert_eq!(
        within(PROMPT, "the end", drain(&mut visitor))
            .await
            .unwrap(),
        6
    );
    within(PROMPT, "the drain", drained).await.unwrap();
    until("the loss", || count(&west, "peer_ws_disconnected") == 1).await;

    let again = config(front, front, peers("east", &[("west", west.front())]));
    let _east = Server::start(again).await.unwrap();
    within(LONG, "connecting again", agent.connected()).await;
    until("the announcement", || west.has_agent("web")).await;
    let text = west.counters().text().unwrap();
    assert!(sum(&text, "peer_ws_attempt") >= sum(&text, "peer_ws_connected"));
    assert_eq!(sum(&text, "peer_ws_connected"), 2, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dialer_reaches_the_agents_of_peers() {
    let two = Two::start(Dialect::Native).await;
    let address = two.target.local_addr().unwrap();
    let dialer = two.west.dialer("web");
    let mut stream = dialer
        .dial(format!("tcp/{address}").as_str())
        .await
        .unwrap();
    let (mut target, _) = within(LONG, "the dial", two.target.accept()).await.unwrap();
    stream.write_all(b"over two links").await.unwrap();
    let mut got = [0; 14];
    within(PROMPT, "the bytes", target.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"over two links");
    target.write_all(b"and back").await.unwrap();
    drop(target);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    within(PROMPT, "the answer", read).await.unwrap();
    assert_eq!(answer, b"and back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_of_a_peer_s_is_reset() {
    let limit = Some(Duration::from_millis(600));
    let two = Two::start_with(Dialect::Native, |east| east.splice.idle = limit).await;
    let (mut visitor, mut target) = two.open_pair().await;
    let end = within(PROMPT, "the visitor's end", drain(&mut visitor)).await;
    assert!(end.is_err(), "{end:?}");
    let _ = within(PROMPT, "the target's end", drain(&mut target)).await;
    let counters = two.east.counters().text().unwrap();
    let line = "watertight_stream_timeouts_total{timeout=\"idle\"} 1\n";
    assert!(counters.contains(line), "{counters}");
}
