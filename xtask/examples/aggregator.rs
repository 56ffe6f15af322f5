//! A control plane that asks a private API one request after another, a round of them for each line
//! on its standard input, and then prints what it counts.
//!
//! With `--client-per-request` it leaks. Its cache of HTTP clients has a key that never comes
//! again, so each request gets a client of its own, whose pool keeps the connection for a next
//! request that never comes. The counter of added connections grows, and the counter of removed
//! ones does not. Nothing here is annotated: it is for the tracer to find.
//!
//!     while sleep 1.5; do echo; done |
//!         tracer run --pile-up-after 3s -- aggregator 127.0.0.1:6080 --client-per-request

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tower_service::Service;

/// How long the API may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A control plane that asks a private API in rounds.
#[derive(Parser)]
struct Args {
    /// Where the API is.
    #[arg(value_name = "IP:PORT")]
    api: SocketAddr,
    /// Makes an HTTP client for each request, instead of one for all of them.
    #[arg(long)]
    client_per_request: bool,
    /// How many requests make a round.
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    requests: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut plane = ControlPlane::new(args.api, args.client_per_request)?;
    while spawn_blocking(read_line).await?? {
        plane.round(args.requests).await?;
        println!("{}", plane.counters);
    }
    Ok(())
}

/// Waits for a line; `false` when there are no more.
fn read_line() -> io::Result<bool> {
    io::stdin()
        .read_line(&mut String::new())
        .map(|read| read > 0)
}

struct ControlPlane {
    uri: Uri,
    client_per_request: bool,
    requests: u64,
    clients: HashMap<u64, Client<Connector, Empty<Bytes>>>,
    counters: Arc<Counters>,
}

impl ControlPlane {
    fn new(api: SocketAddr, client_per_request: bool) -> anyhow::Result<Self> {
        Ok(Self {
            uri: format!("http://{api}/").parse()?,
            client_per_request,
            requests: 0,
            clients: HashMap::new(),
            counters: Arc::new(Counters {
                api,
                added: AtomicU64::new(0),
                removed: AtomicU64::new(0),
            }),
        })
    }

    async fn round(&mut self, requests: u64) -> anyhow::Result<()> {
        for _ in 0..requests {
            let exchange = self.ask();
            timeout(PATIENCE, exchange)
                .await
                .context("no answer came")??;
        }
        Ok(())
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        self.requests += 1;
        let response = self.client().get(self.uri.clone()).await?;
        let status = response.status();
        anyhow::ensure!(status == StatusCode::OK, "the API answered {status}");
        response.into_body().collect().await?;
        Ok(())
    }

    /// Returns the client of a request. This is the leak: one of many for each request, the key
    /// being its number.
    fn client(&mut self) -> Client<Connector, Empty<Bytes>> {
        let key = if self.client_per_request {
            self.requests
        } else {
            0
        };
        let new = || Client::builder(TokioExecutor::new()).build(Connector(self.counters.clone()));
        self.clients.entry(key).or_insert_with(new).clone()
    }
}

/// What the program believes, as remotedialer counts it.
struct Counters {
    api: SocketAddr,
    added: AtomicU64,
    removed: AtomicU64,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (api, added) = (self.api, self.added.load(Ordering::Relaxed));
        let removed = self.removed.load(Ordering::Relaxed);
        writeln!(
            f,
            "session_server_total_add_connections{{addr=\"{api}\"}} {added}"
        )?;
        write!(
            f,
            "session_server_total_remove_connections{{addr=\"{api}\"}} {removed}"
        )
    }
}

/// Dials the API.
#[derive(Clone)]
struct Connector(Arc<Counters>);

impl Service<Uri> for Connector {
    type Response = TokioIo<Counted>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(dial(self.0.clone()))
    }
}

async fn dial(counters: Arc<Counters>) -> io::Result<TokioIo<Counted>> {
    let socket = TcpStream::connect(counters.api).await?;
    counters.added.fetch_add(1, Ordering::Relaxed);
    Ok(TokioIo::new(Counted { socket, counters }))
}

/// A connection that is counted when it is added and when it is removed.
struct Counted {
    socket: TcpStream,
    counters: Arc<Counters>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counters.removed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Connection for Counted {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::ready;

    use http_body_util::Full;
    use hyper::Response;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    use super::*;

    async fn serve(listener: TcpListener) {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let hello = service_fn(|_| ready(Ok::<_, Infallible>(hello())));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), hello),
            );
        }
    }

    fn hello() -> Response<Full<Bytes>> {
        Response::new(Full::from("hello\n"))
    }

    /// Returns what was added and removed by two rounds of ten requests.
    async fn count(client_per_request: bool) -> (u64, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = listener.local_addr().unwrap();
        tokio::spawn(serve(listener));
        let mut plane = ControlPlane::new(api, client_per_request).unwrap();
        plane.round(10).await.unwrap();
        plane.round(10).await.unwrap();
        assert_eq!(plane.requests, 20);
        let text = plane.counters.to_string();
        let mut numbers = text.lines().map(|line| {
            let (name, number) = line.split_once(' ').unwrap();
            assert!(
                name.ends_with(&format!("_connections{{addr=\"{api}\"}}")),
                "{name}"
            );
            number.parse().unwrap()
        });
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    #[tokio::test]
    async fn a_client_for_each_request_adds_connections_and_removes_none() {
        assert_eq!(count(true).await, (20, 0));
    }

    #[tokio::test]
    async fn one_client_for_all_requests_uses_its_connections_again() {
        let (added, removed) = count(false).await;
        assert!(
            added <= 2,
            "{added} connections for requests one after another"
        );
        assert_eq!(removed, 0);
    }
}
