//! Several links of one agent.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tunnel::agent::Agent;
use tunnel::replicas::Replicas;
use tunnel::{agent, server};

use crate::rig::{LONG, PROMPT, Rig, agent_config, drain, loopback, refused, sum, until, within};
use crate::world::{connect, of_the_world};

/// Stands between an agent and its server; each connection can be cut or frozen.
struct Relay {
    connections: Arc<Mutex<Vec<Connection>>>,
    accepting: JoinHandle<()>,
}

struct Connection {
    frozen: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.task.abort();
        }
    }
}

impl Relay {
    /// Puts a relay between an agent that is not yet started and its server.
    fn before(config: &mut agent::Config) -> Self {
        let url = config.server.to_string();
        let server: SocketAddr = url.split('/').nth(2).unwrap().parse().unwrap();
        let listener = of_the_world(std::net::TcpListener::bind(loopback()).unwrap());
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        config.server = format!("ws://{address}/connect").parse().unwrap();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            loop {
                let (agent, _) = listener.accept().await.unwrap();
                let server = connect(server).await.unwrap();
                let frozen = Arc::new(AtomicBool::new(false));
                let task = tokio::spawn(relay(of_the_world(agent), server, Arc::clone(&frozen)));
                taken.lock().unwrap().push(Connection { frozen, task });
            }
        });
        Self {
            connections,
            accepting,
        }
    }

    fn cut(&self, at: usize) {
        self.connections.lock().unwrap()[at].task.abort();
    }

    fn freeze(&self, at: usize) {
        let connections = self.connections.lock().unwrap();
        connections[at].frozen.store(true, Ordering::SeqCst);
    }

    fn taken(&self) -> usize {
        self.connections.lock().unwrap().len()
    }
}

async fn relay(agent: TcpStream, server: TcpStream, frozen: Arc<AtomicBool>) {
    let (mut agent_read, mut agent_write) = agent.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let carry = async |read: &mut tokio::net::tcp::OwnedReadHalf,
                       write: &mut tokio::net::tcp::OwnedWriteHalf| {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = read.read(&mut buffer).await.unwrap_or(0);
            if frozen.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if read == 0 || write.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = carry(&mut agent_read, &mut server_write) => {}
        () = carry(&mut server_read, &mut agent_write) => {}
    }
}

async fn start(links: u8) -> (Rig, Relay) {
    start_with(links, |_| {}, |_| {}).await
}

async fn start_with(
    links: u8,
    change_server: impl FnOnce(&mut server::Config),
    change_agent: impl FnOnce(&mut agent::Config),
) -> (Rig, Relay) {
    let mut relay = None;
    let rig = Rig::start_with(change_server, |agent| {
        relay = Some(Relay::before(agent));
        agent.links = links;
        agent.backoff = (Duration::from_millis(10), Duration::from_millis(50));
        change_agent(agent);
    })
    .await;
    are_up(&rig, links).await;
    (rig, relay.unwrap())
}

async fn are_up(rig: &Rig, links: u8) {
    until("the links", || {
        let text = rig.server.counters().text().unwrap();
        rig.agent.links() == usize::from(links)
            && text.contains(&format!("watertight_sessions {links}\n"))
    })
    .await;
}

async fn pairs(rig: &Rig, count: usize) -> Vec<(TcpStream, TcpStream)> {
    let mut pairs = Vec::new();
    for _ in 0..count {
        pairs.push(rig.pair().await);
    }
    pairs
}

/// Whether bytes still pass.
async fn is_alive((visitor, target): &mut (TcpStream, TcpStream)) -> bool {
    let passes = async {
        visitor.write_all(b"x").await?;
        target.read_exact(&mut [0]).await
    };
    within(PROMPT, "a byte or a reset", passes).await.is_ok()
}

async fn count_alive(pairs: &mut [(TcpStream, TcpStream)]) -> usize {
    let mut count = 0;
    for pair in pairs {
        count += usize::from(is_alive(pair).await);
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_spread_and_a_link_that_dies_costs_its_own() {
    let (rig, relay) = start(3).await;
    let mut first = pairs(&rig, 6).await;
    assert_eq!(count_alive(&mut first).await, 6);
    relay.cut(1);
    until("the new link", || relay.taken() == 4).await;
    are_up(&rig, 3).await;
    assert_eq!(count_alive(&mut first).await, 4);
    // The new link has the fewest.
    let mut second = pairs(&rig, 2).await;
    assert_eq!(count_alive(&mut second).await, 2);
    relay.cut(3);
    until("the next link", || relay.taken() == 5).await;
    assert_eq!(count_alive(&mut second).await, 0);
    assert_eq!(count_alive(&mut first).await, 4);
    drop((first, second));
    until("coming to rest", || rig.server.tasks() <= 6).await;
    within(PROMPT, "the agent's streams", rig.agent.idle()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_owes_a_pong_gets_no_stream_while_another_can_serve() {
    let change = |server: &mut server::Config| {
        server.mux.ping_interval = Duration::from_millis(50);
        server.mux.pong_due = Duration::from_millis(500);
    };
    let (rig, relay) = start_with(2, change, |_| {}).await;
    relay.freeze(0);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let mut pairs = pairs(&rig, 20).await;
    assert_eq!(count_alive(&mut pairs).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_comes_back_takes_the_place_of_its_dead_self_and_of_no_other() {
    let change = |agent: &mut agent::Config| {
        agent.mux.ping_interval = Duration::from_millis(100);
        agent.mux.silence = Duration::from_millis(500);
    };
    let (rig, relay) = start_with(2, |_| {}, change).await;
    let mut before = pairs(&rig, 2).await;
    assert_eq!(count_alive(&mut before).await, 2);
    // The agent finds out, and the server is not told but by the new link.
    relay.freeze(0);
    until("the new link", || relay.taken() == 3).await;
    until("the end of the old session", || {
        let text = rig.server.counters().text().unwrap();
        sum(&text, "remove_websocket_session") == 1
    })
    .await;
    are_up(&rig, 2).await;
    assert_eq!(count_alive(&mut before).await, 1);
    let mut after = pairs(&rig, 2).await;
    assert_eq!(count_alive(&mut after).await, 2);
}

/// A stale session shadows the live one.
#[tokio::test(flavor = "multi_thread")]
async fn l8_links_that_nobody_ended_do_not_shadow_a_new_agent() {
    let (rig, relay) = start(2).await;
    // The server is not told that these ended.
    for at in [0, 1] {
        relay.freeze(at);
    }
    let Rig {
        server,
        agent,
        target,
    } = rig;
    drop(agent);
    let mut config = agent_config(&server, &[target.local_addr().unwrap().to_string()]);
    config.links = 2;
    let agent = Agent::start(config, None);
    until("the links", || agent.links() == 2).await;
    let rig = Rig {
        server,
        agent,
        target,
    };
    until("the registration", || {
        let text = rig.server.counters().text().unwrap();
        text.contains("watertight_sessions 4\n")
    })
    .await;
    let mut pairs = pairs(&rig, 10).await;
    assert_eq!(count_alive(&mut pairs).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_agent_takes_the_place_of_all_links() {
    let replaces = |server: &mut server::Config| server.access.set_replicas(Replicas::Replace);
    let (rig, _relay) = start_with(3, replaces, |_| {}).await;
    let mut older = pairs(&rig, 3).await;
    let config = agent_config(&rig.server, &[rig.target.local_addr().unwrap().to_string()]);
    let newer = Agent::start(config, None);
    within(LONG, "connecting", newer.connected()).await;
    for (visitor, _) in &mut older {
        let end = within(PROMPT, "the reset", drain(visitor)).await;
        assert!(end.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_covers_all_links() {
    let (rig, relay) = start(3).await;
    let mut pairs = pairs(&rig, 3).await;
    let Rig {
        server,
        agent,
        target,
    } = rig;
    let drained = tokio::spawn(agent.drain(LONG));
    // Connections in the backlog are not accepted any more.
    drop(target);
    until("the refusal of streams", || {
        server
            .counters()
            .text()
            .unwrap()
            .contains("reason=\"draining\"")
            || {
                let visitor = std::net::TcpStream::connect(server.forwards()[0]).map(of_the_world);
                drop(visitor.map(of_the_world));
                false
            }
    })
    .await;
    refused(server.forwards()[0]).await;
    assert_eq!(count_alive(&mut pairs).await, 3);
    // A link that dies now is not made again.
    relay.cut(0);
    until("the loss", || server.tasks() <= 6).await;
    assert_eq!(count_alive(&mut pairs).await, 2);
    assert!(!drained.is_finished());
    drop(pairs);
    within(PROMPT, "the drain", drained).await.unwrap();
    assert_eq!(relay.taken(), 3);
}
