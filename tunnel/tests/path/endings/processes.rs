//! Processes that are drained or killed in the middle of their streams.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::pattern::{Ending, Expects, Part, Pattern, introduce, number, play};
use super::{Endings, Rng};
use crate::child::Process;
use crate::rig::{LONG, PROMPT, loopback, within};
use crate::world::{TcpListener, connect};

/// Streams that meet each ending.
const STREAMS: usize = 5;

/// How long a drained process waits for its streams, as its command line says.
const DRAIN: Duration = Duration::from_millis(100);

/// Server and agent as processes, which come back on the same ports.
struct Tunnel {
    server: Option<Process>,
    agent: Option<Process>,
    front: String,
    forward: String,
    target: TcpListener,
    dialect: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Server,
    Agent,
}

impl Tunnel {
    async fn start(dialect: &'static str) -> Self {
        let (front, forward) = (loopback().to_string(), loopback().to_string());
        let mut tunnel = Self {
            server: None,
            agent: None,
            front,
            forward,
            target: TcpListener::bind(loopback()).await.unwrap(),
            dialect,
        };
        tunnel.bring_back().await;
        tunnel
    }

    /// Starts what does not run. A port that somebody has in the meantime is waited for.
    async fn bring_back(&mut self) {
        let address = self.target.local_addr().unwrap().to_string();
        let deadline = Instant::now() + LONG;
        while self.server.is_none() {
            let forward = format!("{}=web/tcp/{address}", self.forward);
            let mut server = Process::start(&[
                "server",
                "--accept-remotedialer",
                "--listen",
                &self.front,
                "--forward",
                &forward,
                "--drain",
                "100ms",
            ]);
            if let Some(front) = server.try_listening("front") {
                self.front = front;
                self.forward = server.listening("forward");
                self.server = Some(server);
            }
            assert!(Instant::now() < deadline, "the server does not come back");
        }
        if self.agent.is_none() {
            let url = format!("ws://{}/connect", self.front);
            self.agent = Some(Process::start(&[
                "agent",
                "--server",
                &url,
                "--name",
                "web",
                "--allow",
                &address,
                "--dialect",
                self.dialect,
                "--drain",
                "100ms",
            ]));
        }
    }

    /// Opens a stream; while there is no agent visitors are turned away.
    async fn open(&self, id: u64) -> (TcpStream, TcpStream) {
        let open = async {
            loop {
                if let Ok(Some(pair)) = timeout(PROMPT, self.try_open(id)).await {
                    return pair;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        within(LONG, "a stream", open).await
    }

    async fn try_open(&self, id: u64) -> Option<(TcpStream, TcpStream)> {
        let mut visitor = connect(&self.forward).await.ok()?;
        introduce(&mut visitor, id).await.ok()?;
        let ended = visitor.readable();
        let mut target = tokio::select! {
            accepted = self.target.accept() => accepted.unwrap().0,
            _ = ended => return None,
        };
        // One that was turned away may have got as far as the target.
        (number(&mut target).await.ok()? == id).then_some((visitor, target))
    }

    fn end(&mut self, side: Side) -> Process {
        let process = match side {
            Side::Server => &mut self.server,
            Side::Agent => &mut self.agent,
        };
        process.take().unwrap()
    }
}

/// Ends one side of a tunnel, in the way that `how` does, while streams are busy.
async fn endings(what: &str, side: fn(&mut Rng) -> Side, how: fn(Process)) {
    let endings = Arc::new(Mutex::new(Endings::begin(what)));
    let mut tunnels = JoinSet::new();
    for dialect in ["native", "native", "remotedialer"] {
        let endings = Arc::clone(&endings);
        tunnels.spawn(async move {
            let mut tunnel = Tunnel::start(dialect).await;
            loop {
                let Some(mut rng) = endings.lock().unwrap().next() else {
                    return;
                };
                let side = side(&mut rng);
                one_ending(&mut tunnel, rng, side, how).await;
            }
        });
    }
    tunnels.join_all().await;
}

async fn one_ending(tunnel: &mut Tunnel, mut rng: Rng, side: Side, how: fn(Process)) {
    let mut playing = JoinSet::new();
    for _ in 0..STREAMS {
        let (visitor, target) = tunnel.open(rng.next()).await;
        let patterns = [Pattern(rng.next()), Pattern(rng.next())];
        for (at, end) in [visitor, target].into_iter().enumerate() {
            let part = Part {
                sends: patterns[at],
                receives: patterns[1 - at],
                ending: Ending::None,
                expects: Expects::Anything,
                delay: Duration::from_micros(rng.below(2) * rng.below(2000)),
            };
            playing.spawn(play(end, part));
        }
    }
    sleep(Duration::from_micros(rng.below(20_000))).await;
    let process = tunnel.end(side);
    tokio::task::spawn_blocking(move || how(process))
        .await
        .unwrap();
    within(PROMPT, "the ends of the streams", playing.join_all()).await;
    tunnel.bring_back().await;
}

fn either(rng: &mut Rng) -> Side {
    match rng.below(2) {
        0 => Side::Server,
        _ => Side::Agent,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_its_streams_at_its_deadline() {
    endings("drains", either, |mut process| {
        let began = Instant::now();
        process.signal();
        assert_eq!(process.status(), 0);
        assert!(began.elapsed() < DRAIN + PROMPT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_ends_its_streams_and_comes_back() {
    endings("kills of the agent", |_| Side::Agent, drop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_ends_its_streams_and_comes_back() {
    endings("kills of the server", |_| Side::Server, drop).await;
}
