//! The private service: an HTTP/1 server that is reached through the tunnel only.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::{LISTENING, pattern};

/// Bytes of one frame of a large body.
const FRAME: usize = 16 << 10;

type Body = BoxBody<Bytes, Infallible>;

/// Serves until SIGTERM.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{LISTENING}upstream={}", listener.local_addr()?);
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        never = accept(listener) => match never? {},
    }
}

/// Serves in a thread of this process, for as long as the process lives. Returns where.
pub(crate) fn spawn() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = Builder::new_current_thread().enable_io().build()?;
    std::thread::spawn(move || {
        let served = runtime.block_on(async { accept(TcpListener::from_std(listener)?).await });
        let Err(error) = served;
        eprintln!("the upstream cannot accept any more: {error}");
    });
    Ok(address)
}

async fn accept(listener: TcpListener) -> io::Result<Infallible> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, _) = accepted?;
                socket.set_nodelay(true)?;
                connections.spawn(converse(socket));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(socket: TcpStream) {
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(request).await));
    // Visitors who abort are the point of the exercise: their errors are expected.
    let _ = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let large = path
        .strip_prefix("/bytes/")
        .and_then(|size| size.parse::<usize>().ok());
    match (path.as_str(), large) {
        ("/", _) => Response::new(Full::from("hello from the private service\n").boxed()),
        ("/echo", _) => match request.into_body().collect().await {
            Ok(body) => Response::new(Full::new(body.to_bytes()).boxed()),
            Err(_) => status(StatusCode::BAD_REQUEST),
        },
        (_, Some(size)) => {
            let mut response = Response::new(pattern_body(size));
            response
                .headers_mut()
                .insert(hyper::header::CONTENT_LENGTH, size.into());
            response
        }
        (_, None) => status(StatusCode::NOT_FOUND),
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().boxed());
    *response.status_mut() = status;
    response
}

fn pattern_body(size: usize) -> Body {
    let frames = stream::unfold(0, move |position| async move {
        let length = FRAME.min(size - position);
        if length == 0 {
            return None;
        }
        let bytes: Bytes = (position..position + length).map(pattern).collect();
        Some((Ok(Frame::data(bytes)), position + length))
    });
    StreamBody::new(frames).boxed()
}
