//! The visitors: well-behaved ones, kept alive and not, and those that abort, half-close or never
//! read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{HALFWAY, HOST, PROGRESS, pattern};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The HTTP front with the path of the upstream: ADDR/client/agent/http/host:port
    #[arg(long)]
    front: String,
    /// A TCP forward to the upstream.
    #[arg(long)]
    forward: SocketAddr,
}

/// How many visitors of each kind come in each half of the load.
const KEPT_ALIVE: usize = 8;
const REQUESTS_EACH: usize = 50;
const ONE_SHOT: usize = 200;
const FORWARDED: usize = 10;
const FORWARDED_EACH: usize = 10;
const ABORTING: usize = 30;
const HALF_CLOSING: usize = 30;
const NEVER_READING: usize = 8;

const SMALL: usize = 2_000;
const LARGE: usize = 50_000_000;
/// How long a visitor that never reads stays. Less than the tracer's grace: it does not notice when
/// its connection dies, as when the agent is killed, and would be found holding it.
const STUBBORN: Duration = Duration::from_millis(400);
/// How long anything may take, the return of the agent included.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between tries while the agent is away.
const RETRY: Duration = Duration::from_millis(50);

/// What a load adds up to.
struct Tally {
    answered: AtomicU64,
    refused: AtomicU64,
}

impl Tally {
    fn answered(&self) {
        let done = self.answered.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(50) {
            println!("{PROGRESS}{done} {}", requests());
        }
    }
}

/// Returns how many requests are answered in the end.
const fn requests() -> usize {
    2 * (KEPT_ALIVE * REQUESTS_EACH + ONE_SHOT + FORWARDED * FORWARDED_EACH + HALF_CLOSING)
}

/// Sends the whole load. Ends with an error when one answer was wrong.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(args: &Args) -> Result<()> {
    let tally = Arc::new(Tally {
        answered: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    });
    println!("{PROGRESS}0 {}", requests());
    half(args, &tally).await?;
    println!("{HALFWAY}");
    half(args, &tally).await?;
    let answered = tally.answered.load(Ordering::Relaxed);
    println!("{PROGRESS}{answered} {}", requests());
    println!(
        "refused-while-away {}",
        tally.refused.load(Ordering::Relaxed)
    );
    ensure!(
        answered == requests() as u64,
        "{answered} of {} requests were answered",
        requests()
    );
    Ok(())
}

async fn half(args: &Args, tally: &Arc<Tally>) -> Result<()> {
    let front = Front::parse(&args.front)?;
    let mut visitors = JoinSet::new();
    for _ in 0..KEPT_ALIVE {
        visitors.spawn(kept_alive(front.clone(), Arc::clone(tally)));
    }
    let (one_shot, shots) = (front.clone(), Arc::clone(tally));
    visitors.spawn(async move {
        for _ in 0..ONE_SHOT {
            request(&one_shot.address, &one_shot.path(SMALL), &shots, SMALL).await?;
        }
        Ok(())
    });
    for _ in 0..FORWARDED {
        visitors.spawn(forwarded(args.forward, Arc::clone(tally)));
    }
    for n in 0..ABORTING {
        let (address, path) = either(n, args, &front);
        visitors.spawn(aborting(address, path));
    }
    for _ in 0..HALF_CLOSING {
        visitors.spawn(half_closing(args.forward, Arc::clone(tally)));
    }
    for n in 0..NEVER_READING {
        let (address, path) = either(n, args, &front);
        visitors.spawn(never_reading(address, path));
    }
    while let Some(visitor) = visitors.join_next().await {
        visitor??;
    }
    Ok(())
}

/// Where the HTTP front is and what it calls the upstream.
#[derive(Clone)]
struct Front {
    address: SocketAddr,
    prefix: String,
}

impl Front {
    fn parse(text: &str) -> Result<Self> {
        let (address, path) = text.split_once('/').context("--front has no path")?;
        Ok(Self {
            address: address.parse()?,
            prefix: format!("/{path}"),
        })
    }

    fn path(&self, size: usize) -> String {
        format!("{}/bytes/{size}", self.prefix)
    }
}

/// Half of the badly behaved visitors come by the HTTP front, half by the forward.
fn either(n: usize, args: &Args, front: &Front) -> (SocketAddr, String) {
    if n.is_multiple_of(2) {
        (front.address, front.path(LARGE))
    } else {
        (args.forward, format!("/bytes/{LARGE}"))
    }
}

/// One connection, many requests; a new one when it ends, as when the agent is away.
async fn kept_alive(front: Front, tally: Arc<Tally>) -> Result<()> {
    repeat(front.address, &front.path(SMALL), REQUESTS_EACH, &tally).await
}

async fn forwarded(address: SocketAddr, tally: Arc<Tally>) -> Result<()> {
    repeat(address, &format!("/bytes/{SMALL}"), FORWARDED_EACH, &tally).await
}

async fn repeat(address: SocketAddr, path: &str, times: usize, tally: &Tally) -> Result<()> {
    timeout(PATIENCE, async {
        let mut done = 0;
        while done < times {
            let Ok(mut connection) = connect(&address).await else {
                tally.refused.fetch_add(1, Ordering::Relaxed);
                sleep(RETRY).await;
                continue;
            };
            while done < times && exchange(&mut connection, path, SMALL, tally).await? {
                done += 1;
            }
        }
        Ok(())
    })
    .await
    .context("a kept-alive visitor waited too long")?
}

/// A connection for each request.
async fn request(address: &SocketAddr, path: &str, tally: &Tally, size: usize) -> Result<()> {
    timeout(PATIENCE, async {
        loop {
            if let Ok(mut connection) = connect(address).await
                && exchange(&mut connection, path, size, tally).await?
            {
                return Ok(());
            }
            sleep(RETRY).await;
        }
    })
    .await
    .context("a visitor waited too long")?
}

/// An HTTP connection; its task ends with it.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    _task: JoinSet<()>,
}

async fn connect(address: &SocketAddr) -> Result<Connection> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(socket)).await?;
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _ = connection.await;
    });
    Ok(Connection {
        sender,
        _task: task,
    })
}

/// Sends one request; `false` when the tunnel could not serve it just then. A wrong answer is an
/// error.
async fn exchange(
    connection: &mut Connection,
    path: &str,
    size: usize,
    tally: &Tally,
) -> Result<bool> {
    let request = Request::get(path)
        .header(hyper::header::HOST, HOST)
        .body(Empty::new())?;
    let answer = async {
        connection.sender.ready().await?;
        let response = connection.sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    let Ok((status, body)) = answer.await else {
        tally.refused.fetch_add(1, Ordering::Relaxed);
        return Ok(false);
    };
    if status.is_server_error() {
        tally.refused.fetch_add(1, Ordering::Relaxed);
        sleep(RETRY).await;
        return Ok(false);
    }
    ensure!(status == StatusCode::OK, "{path} was answered {status}");
    check(&body, size)?;
    tally.answered();
    Ok(true)
}

fn check(body: &[u8], size: usize) -> Result<()> {
    ensure!(
        body.len() == size,
        "a body of {} bytes where {size} were asked for",
        body.len()
    );
    let wrong = body
        .iter()
        .enumerate()
        .find(|(n, byte)| **byte != pattern(*n));
    ensure!(wrong.is_none(), "a wrong byte at {wrong:?}");
    Ok(())
}

async fn ask(address: SocketAddr, path: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    Ok(socket)
}

/// Reads a little and resets the connection.
async fn aborting(address: SocketAddr, path: String) -> Result<()> {
    let mut socket = ask(address, &path).await?;
    let mut bytes = [0; 4096];
    for _ in 0..16 {
        match socket.read(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    socket.set_zero_linger()?;
    Ok(())
}

/// Finishes its own direction before the answer comes.
async fn half_closing(address: SocketAddr, tally: Arc<Tally>) -> Result<()> {
    timeout(PATIENCE, async {
        loop {
            if let Ok(body) = half_closed_exchange(address).await {
                check(&body, SMALL)?;
                tally.answered();
                return Ok(());
            }
            tally.refused.fetch_add(1, Ordering::Relaxed);
            sleep(RETRY).await;
        }
    })
    .await
    .context("a half-closing visitor waited too long")?
}

async fn half_closed_exchange(address: SocketAddr) -> Result<Vec<u8>> {
    let mut socket = ask(address, &format!("/bytes/{SMALL}")).await?;
    socket.shutdown().await?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await?;
    let head = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("no answer came")?;
    Ok(answer.split_off(head + 4))
}

/// Asks for much and reads nothing of it.
async fn never_reading(address: SocketAddr, path: String) -> Result<()> {
    let socket = ask(address, &path).await?;
    sleep(STUBBORN).await;
    drop(socket);
    Ok(())
}
