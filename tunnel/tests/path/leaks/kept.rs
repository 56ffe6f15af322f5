//! What remains when everything is idle: descriptors, tasks, memory, CPU time.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::child::Process;
use crate::rig::{LONG, PROMPT, Rig, drain, loopback, with_http, within};
use crate::world::{TcpListener, connect};

/// Server and agent as processes of their own.
struct Tunnel {
    /// Each with where it tells its counters.
    processes: [(Process, String); 2],
    forward: String,
    target: TcpListener,
}

/// What a process holds.
#[derive(Debug)]
struct Resources {
    sockets: usize,
    tasks: u64,
    /// In KiB: all of it, and the anonymous part.
    memory: u64,
    own: u64,
}

impl Resources {
    /// A tenth more memory may be held: code that only streams run, and pages of the heap that
    /// something small happens to hold.
    fn is_no_more_than(&self, before: &Self) -> bool {
        self.tasks <= before.tasks
            && self.sockets <= before.sockets
            && self.memory * 10 <= before.memory * 11
            && self.own <= before.own + SPARE
    }
}

/// A tenth of what a fresh process holds that is built for release, in KiB. What tests run is not
/// optimized: a tenth of its code alone would hide as much.
const SPARE: u64 = 800;

async fn counters(address: &str) -> String {
    let mut scraper = connect(address).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    scraper.write_all(request).await.unwrap();
    let mut text = String::new();
    scraper.read_to_string(&mut text).await.unwrap();
    text
}

fn gauge(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().parse().unwrap()
}

impl Tunnel {
    async fn start() -> Self {
        let target = TcpListener::bind(loopback()).await.unwrap();
        let address = target.local_addr().unwrap().to_string();
        let any = loopback().to_string();
        let forward = format!("{any}=web/tcp/{address}");
        let mut server = Process::start(&[
            "server",
            "--listen",
            &any,
            "--forward",
            &forward,
            "--admin",
            &any,
        ]);
        let front = server.listening("front");
        let forward = server.listening("forward");
        let at_server = server.listening("admin");
        let url = format!("ws://{front}/connect");
        let mut agent = Process::start(&[
            "agent", "--server", &url, "--name", "web", "--allow", &address, "--admin", &any,
        ]);
        let at_agent = agent.listening("admin");
        let connected = async {
            while gauge(&counters(&at_server).await, "watertight_sessions ") == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(LONG, "the agent's coming", connected).await;
        Self {
            processes: [(server, at_server), (agent, at_agent)],
            forward,
            target,
        }
    }

    async fn pair(&self) -> (TcpStream, TcpStream) {
        let mut visitor = connect(&self.forward).await.unwrap();
        visitor.write_all(&[1; 100]).await.unwrap();
        let (mut target, _) = self.target.accept().await.unwrap();
        target.read_exact(&mut [0; 100]).await.unwrap();
        target.write_all(&[2; 100]).await.unwrap();
        (visitor, target)
    }

    async fn held(&self) -> [Resources; 2] {
        let mut held = Vec::new();
        for (process, counters_at) in &self.processes {
            held.push(Resources {
                tasks: gauge(&counters(counters_at).await, "watertight_tasks "),
                sockets: settled(process).await,
                memory: process.memory("VmRSS:"),
                own: process.memory("RssAnon:"),
            });
        }
        held.try_into().unwrap()
    }

    /// Waits until no more than `most` streams are left.
    async fn streams(&self, most: usize) {
        let fewer = async {
            while gauge(&counters(&self.processes[0].1).await, "watertight_streams ") > most as u64
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(LONG, "the end of the streams", fewer).await;
    }

    /// Waits until there are no more tasks and sockets than there were, and memory was given back.
    async fn rest(&self, before: &[Resources; 2]) {
        let rest = async {
            let mut reported = Instant::now();
            loop {
                let held = self.held().await;
                if held
                    .iter()
                    .zip(before)
                    .all(|(now, then)| now.is_no_more_than(then))
                {
                    return;
                }
                if reported.elapsed() > GIVEN_BACK {
                    reported = Instant::now();
                    eprintln!("at first {before:?}\nstill    {held:?}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(LONG, "coming to rest", rest).await;
    }
}

/// Returns how many sockets a process has once that of the scrape before is closed.
async fn settled(process: &Process) -> usize {
    let mut sockets = process.sockets();
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = process.sockets();
        if now >= sockets {
            return now;
        }
        sockets = now;
    }
}

/// The processes look every second whether there is memory to give back, and do so with the second
/// look.
const GIVEN_BACK: Duration = Duration::from_secs(3);

async fn five_thousand(tunnel: &Tunnel) -> [Resources; 2] {
    const STREAMS: usize = 5000;
    let pairs: Vec<_> = stream::iter(0..STREAMS)
        .map(|_| tunnel.pair())
        .buffer_unordered(32)
        .collect()
        .await;
    let open = tunnel.held().await;
    for held in &open {
        assert!(
            held.sockets > STREAMS && held.tasks > STREAMS as u64,
            "{held:?}"
        );
    }
    // Who was opened at the same time may have taken another's target. Not all end at once: that
    // they do so within the tracer's grace is no promise of a slow machine.
    let (mut visitors, targets): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    while !visitors.is_empty() {
        visitors.truncate(visitors.len().saturating_sub(250));
        tunnel.streams(visitors.len()).await;
    }
    for mut target in targets {
        let _ = within(PROMPT, "the target's end", drain(&mut target)).await;
    }
    open
}

/// Each time: what every burst leaves would add up.
#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_idle_streams_leave_nothing() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    let tunnel = Tunnel::start().await;
    let fresh = tunnel.held().await;
    for _ in 0..3 {
        let open = five_thousand(&tunnel).await;
        assert!(
            open.iter()
                .zip(&fresh)
                .all(|(open, fresh)| open.own > fresh.own + 10 * SPARE)
        );
        tunnel.rest(&fresh).await;
    }
    let spent = || tunnel.processes.iter().map(|(process, _)| process.ticks());
    let before: u64 = spent().sum();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ticks = spent().sum::<u64>() - before;
    assert!(ticks <= 5, "{ticks} ticks of 10 ms in an idle second");
}

/// Each has its own target connection, which ends with it: none idles in a pool for a next one.
#[tokio::test(flavor = "multi_thread")]
async fn requests_keep_no_connection_to_their_target() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let address = rig.target.local_addr().unwrap();
    let mut ends = tokio::task::JoinSet::new();
    for at in 0..50 {
        let mut visitor = connect(rig.server.front()).await.unwrap();
        let path = format!("/client/web/http/{address}/?timeout={at}");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        visitor.write_all(request.as_bytes()).await.unwrap();
        let (target, _) = rig.target.accept().await.unwrap();
        let mut target = BufReader::new(target);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            target.read_line(&mut head).await.unwrap();
        }
        // The target would keep it.
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok";
        target.write_all(answer).await.unwrap();
        within(PROMPT, "the answer", visitor.read_to_end(&mut Vec::new()))
            .await
            .unwrap();
        ends.spawn(async move { target.read_to_end(&mut Vec::new()).await.map(drop) });
    }
    within(PROMPT, "the targets' ends", ends.join_all()).await;
    rig.at_rest().await;
}
