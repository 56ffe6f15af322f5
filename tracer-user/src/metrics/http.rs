//! Serves a router over HTTP to clients that may be slow, silent or many.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::metrics::host;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once; more wait in the kernel's backlog.
    pub(super) connections_max: usize,
    /// How long the head of a request may take, and how long a kept-alive connection may be silent.
    pub(super) silence: Duration,
}

/// The longest head of a request, in bytes.
const HEAD_MAX: usize = 16 * 1024;

/// How long to wait after an accept that failed, for descriptors to become free.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Answers for ever. Dropping the future aborts all connections.
pub(super) async fn serve(listener: TcpListener, router: Router, limits: Limits) {
    let router = router.layer(from_fn_with_state(host::own(), host::guard));
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                log::warn!("the metrics port cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let router = router.clone();
        connections.spawn(async move {
            serve_connection(socket, router, limits.silence).await;
            drop(permit);
        });
    }
}

async fn serve_connection(socket: TcpStream, router: Router, silence: Duration) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(silence)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        log::debug!("a connection to the metrics port ended early: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    async fn start(connections_max: usize, silence: Duration) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get("here\n"));
        let limits = Limits {
            connections_max,
            silence,
        };
        (address, tokio::spawn(serve(listener, router, limits)))
    }

    async fn ask(address: SocketAddr, host: &str) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_foreign_host_name_is_refused() {
        let (address, _task) = start(8, LONG).await;
        let text = ask(address, "evil.example").await;
        assert!(
            text.starts_with("HTTP/1.1 421 ") && !text.contains("here"),
            "{text}"
        );
        for host in ["localhost", &address.to_string(), &host::own()] {
            let text = ask(address, host).await;
            assert!(
                text.starts_with("HTTP/1.1 200 ") && text.contains("here"),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn only_so_many_connections_are_served_at_once() {
        let (address, _task) = start(2, LONG).await;
        let first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        let third = ask(address, "localhost");
        tokio::pin!(third);
        let early = timeout(Duration::from_millis(200), &mut third).await;
        assert!(early.is_err(), "{early:?}");
        drop(first);
        let text = timeout(LONG, third).await.unwrap();
        assert!(text.contains("here"), "{text}");
    }

    #[tokio::test]
    async fn a_silent_client_is_disconnected() {
        let (address, _task) = start(1, Duration::from_millis(100)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nhost: loc")
            .await
            .unwrap();
        for client in [&mut silent, &mut slow] {
            let mut rest = Vec::new();
            let ended = timeout(LONG, client.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "it stays connected");
        }
        let text = timeout(LONG, ask(address, "localhost")).await.unwrap();
        assert!(text.contains("here"), "{text}");
    }
}
