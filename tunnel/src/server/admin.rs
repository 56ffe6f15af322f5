//! Serves the counters.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::scope;
use crate::socket::{Listener, NOBODY, Role, Socket};

/// Scrapers at once.
const CONNECTIONS_MAX: usize = 32;

/// How long a scraper may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// Serves `GET /metrics`; connections are tasks of `scope`.
pub async fn serve(metrics: Arc<Metrics>, listener: Listener, scope: scope::Handle) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let socket = listener.accept().await;
        socket.bind(Role::Control, NOBODY, "metrics");
        let metrics = Arc::clone(&metrics);
        scope.spawn_interruptible(async move {
            let _permit = permit;
            serve_scraper(metrics, socket).await;
        });
    }
}

async fn serve_scraper(metrics: Arc<Metrics>, socket: Socket) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&metrics, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .serve_connection(TokioIo::new(socket), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a scraper left early");
    }
}

fn respond<B>(metrics: &Metrics, request: &Request<B>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match metrics.text() {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => (StatusCode::NOT_FOUND, "there is GET /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let text = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}
