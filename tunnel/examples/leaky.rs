//! A proxy that leaks upstream sockets like rancher/remotedialer did, for the tracer to find. Each
//! HTTP request gets a client and a connection of its own, with keep-alive. Now and then the client
//! is forgotten when the request ends: its connection stays in a pool that is never emptied and has
//! no idle timeout. The counter of added connections grows, and the counter of removed ones does
//! not. Otherwise the proxy is correct, and every socket is annotated.
//!
//!     leaky --listen 127.0.0.1:0 --metrics 127.0.0.1:0 --leak-every 10

use std::any::Any;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Parser;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tunnel::admin;
use tunnel::admin::Admin;
use tunnel::io::scope;
use tunnel::io::scope::Scope;
use tunnel::io::socket::{Listener, Mark, NOBODY, Owner, Role, Socket};
use tunnel::metrics::{Compat, Metrics, SessionMetrics, StreamMetrics};
use tunnel::mux::Ending;
use tunnel::target::Target;
use tunnel::wire::handshake::Party;

/// A proxy that forgets one upstream socket in N.
#[derive(Parser)]
struct Args {
    /// Where HTTP visitors connect: /client/ANYTHING/http/HOST:PORT/PATH.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Forward a TCP port. Repeatable.
    #[arg(long = "forward", value_name = "LISTEN=HOST:PORT")]
    forwards: Vec<String>,
    /// Serve the two counters.
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    /// Forget the socket of one request in this many; 0 forgets none.
    #[arg(long, value_name = "N", default_value_t = 10)]
    leak_every: u64,
}

/// What all tasks share.
struct Proxy {
    session: u64,
    streams: AtomicU64,
    leak_every: u64,
    metrics: SessionMetrics,
    /// Each END is sent through the front's listener, which outlives every connection.
    listener: Mark,
    /// The leak: a pool of clients that are never used again.
    forgotten: Mutex<Vec<Box<dyn Any + Send>>>,
}

impl Proxy {
    /// Returns the next request's owner, and whether its socket will be forgotten.
    fn next_stream(&self) -> (Owner, bool) {
        let stream = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let owner = Owner {
            session: self.session,
            stream,
        };
        (
            owner,
            self.leak_every > 0 && stream.is_multiple_of(self.leak_every),
        )
    }

    fn forget(&self, client: impl Any + Send) {
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(client));
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let scope = Scope::new();
    let metrics = Metrics::new(Some(Compat::Remotedialer))?;
    let front = Listener::listen(args.listen, "front").await?;
    println!("listening front={}", front.address());
    let proxy = Arc::new(Proxy {
        session: u64::from(std::process::id()) << 32 | 0x1ea4,
        streams: AtomicU64::new(0),
        leak_every: args.leak_every,
        metrics: metrics.session_began("leaky", Party::Agent),
        listener: front.mark(),
        forgotten: Mutex::default(),
    });
    scope.spawn_interruptible(serve_front(Arc::clone(&proxy), front, scope.handle()));
    for forward in args.forwards {
        let (listen, target) = forward
            .split_once('=')
            .context("--forward wants LISTEN=HOST:PORT")?;
        let target = Target::tcp(target, None)?;
        let listener = Listener::listen(listen.parse()?, "forward").await?;
        println!("listening forward={}", listener.address());
        scope.spawn_interruptible(serve_forward(
            Arc::clone(&proxy),
            listener,
            target,
            scope.handle(),
        ));
    }
    if let Some(address) = args.metrics {
        let port = Admin::new(metrics)
            .listen(admin::Config::new(address))
            .await?;
        println!("listening metrics={}", port.address());
        scope.spawn_interruptible(port.serve(scope.handle()));
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn dial(target: &Target, owner: Owner) -> anyhow::Result<Socket> {
    let Target::Tcp(endpoint) = target else {
        anyhow::bail!("this proxy dials TCP only");
    };
    let addresses = tunnel::io::resolver::resolve(endpoint, owner).await?;
    let address = addresses.first().context("no address")?;
    Ok(Socket::dial(*address, Role::Stream, owner, &format!("target {target}")).await?)
}

async fn serve_forward(
    proxy: Arc<Proxy>,
    listener: Listener,
    target: Target,
    scope: scope::Handle,
) {
    loop {
        let mut visitor = listener.accept().await;
        let (proxy, target) = (Arc::clone(&proxy), target.clone());
        scope.spawn(async move {
            let (owner, leaks) = proxy.next_stream();
            visitor.bind(
                Role::Stream,
                owner,
                &format!("visitor {} -> {target}", visitor.peer_addr()),
            );
            let Ok(mut upstream) = dial(&target, owner).await else {
                proxy.listener.end(owner, Ending::Finished);
                return;
            };
            let counted = proxy.metrics.stream_began(&target);
            let hung_up = visitor.hung_up();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut visitor, &mut upstream) => {}
                () = hung_up => {}
            }
            proxy.listener.end(owner, Ending::Finished);
            if leaks {
                proxy.forget((upstream, counted));
            }
        });
    }
}

async fn serve_front(proxy: Arc<Proxy>, listener: Listener, scope: scope::Handle) {
    loop {
        let socket = listener.accept().await;
        let visitor = socket.mark();
        let label = format!("visitor {}", socket.peer_addr());
        visitor.bind(Role::Pool, NOBODY, &label);
        let (proxy, tasks) = (Arc::clone(&proxy), scope.clone());
        let service = service_fn(move |request| {
            let exchange = Exchange {
                listener: proxy.listener.clone(),
                visitor: visitor.clone(),
                label: label.clone(),
                owner: NOBODY,
                cancel: CancellationToken::new(),
                counted: None,
            };
            let (proxy, tasks) = (Arc::clone(&proxy), tasks.clone());
            async move {
                let response = serve_request(&proxy, &tasks, exchange, request).await;
                Ok::<_, Infallible>(response.unwrap_or_else(|error| {
                    let mut response =
                        Response::new(Either::Right(Full::from(format!("{error:#}\n"))));
                    *response.status_mut() = StatusCode::BAD_GATEWAY;
                    response
                }))
            }
        });
        let hung_up = socket.hung_up();
        scope.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .half_close(true)
                .serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                _ = connection => {}
                () = hung_up => {}
            }
        });
    }
}

async fn serve_request(
    proxy: &Arc<Proxy>,
    tasks: &scope::Handle,
    mut exchange: Exchange,
    mut request: Request<Incoming>,
) -> anyhow::Result<Response<Either<ExchangeBody, Full<Bytes>>>> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let mut parts = path.trim_start_matches('/').splitn(5, '/');
    let usage = "write /client/ANYTHING/http/HOST:PORT/PATH";
    anyhow::ensure!(parts.next() == Some("client"), usage);
    let authority = parts.nth(2).context(usage)?.to_owned();
    let path = format!("/{}", parts.next().unwrap_or_default());
    let target = Target::tcp(&authority, Some(80))?;

    let (owner, leaks) = proxy.next_stream();
    exchange.owner = owner;
    exchange.visitor.bind(
        Role::Stream,
        owner,
        &format!("{} -> {target}", exchange.label),
    );
    let upstream = dial(&target, owner).await?;
    let counted = proxy.metrics.stream_began(&target);
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(upstream)).await?;
    if leaks {
        proxy.forget(counted);
    } else {
        exchange.counted = Some(counted);
    }
    let (cancel, pool) = (exchange.cancel.clone(), Arc::clone(proxy));
    tasks.spawn(async move {
        let mut connection = Box::pin(connection);
        let _ = cancel.run_until_cancelled(&mut connection).await;
        if leaks {
            cancel.cancelled().await;
            pool.forget(connection);
        }
    });
    *request.uri_mut() = path.parse()?;
    request.headers_mut().remove(CONNECTION);
    request
        .headers_mut()
        .insert(HOST, HeaderValue::from_str(&authority)?);
    let mut response = client.send_request(request).await?;
    if leaks {
        proxy.forget(client);
    }
    response.headers_mut().remove(CONNECTION);
    Ok(response.map(|body| Either::Left(ExchangeBody { body, exchange })))
}

/// A request that is being served. Dropping it ends the request.
struct Exchange {
    listener: Mark,
    visitor: Mark,
    label: String,
    owner: Owner,
    cancel: CancellationToken,
    counted: Option<StreamMetrics>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.owner != NOBODY {
            self.listener.end(self.owner, Ending::Finished);
        }
        self.counted = None;
        self.visitor.bind(Role::Pool, NOBODY, &self.label);
        self.cancel.cancel();
    }
}

struct ExchangeBody {
    body: Incoming,
    #[expect(dead_code, reason = "its drop ends the request")]
    exchange: Exchange,
}

impl Body for ExchangeBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
