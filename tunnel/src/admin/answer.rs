//! Questions and answers.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::admin::view::{Sessions, Streams};
use crate::admin::{Admin, Inspector, SessionView, Shared, host, page};
use crate::io::socket::Socket;

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What every answer says to browsers: no script runs, nothing is loaded or framed, no type is guessed, no other site reads it.
const GUARDS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

pub(super) async fn serve(shared: Arc<Shared>, socket: Socket) {
    let silence = shared.config.silence;
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&shared, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(silence)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(socket), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "who asked the admin port left early");
    }
}

fn respond<B>(shared: &Shared, request: &Request<B>) -> Response<Full<Bytes>> {
    let (status, kind, body) = answer(shared, request);
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in GUARDS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn answer<B>(shared: &Shared, request: &Request<B>) -> (StatusCode, &'static str, String) {
    let Shared { admin, config } = shared;
    if let Err((status, why)) = host::check(request, &config.hosts) {
        return (status, TEXT, why);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let why = "the admin port answers GET and HEAD\n";
        return (StatusCode::METHOD_NOT_ALLOWED, TEXT, why.to_owned());
    }
    let json = |text: Result<String, serde_json::Error>| match text {
        Ok(text) => (StatusCode::OK, JSON, text + "\n"),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            format!("{error}\n"),
        ),
    };
    match request.uri().path() {
        "/" => (StatusCode::OK, HTML, page::write(admin)),
        "/metrics" => match admin.metrics.text() {
            Ok(text) => (StatusCode::OK, PROMETHEUS, text),
            Err(error) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                format!("{error}\n"),
            ),
        },
        "/livez" => (StatusCode::OK, TEXT, "alive\n".to_owned()),
        "/readyz" => match admin.not_ready_reason() {
            None => (StatusCode::OK, TEXT, "ready\n".to_owned()),
            Some(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                format!("not ready: {why}\n"),
            ),
        },
        "/admin/sessions" => json(serde_json::to_string(&Sessions {
            sessions: admin.sessions(0),
        })),
        "/admin/streams" => {
            let shown = admin.sessions(config.streams_max);
            json(serde_json::to_string(&Streams::of(shown)))
        }
        _ => {
            let there =
                "there are /, /metrics, /livez, /readyz, /admin/sessions and /admin/streams\n";
            (StatusCode::NOT_FOUND, TEXT, there.to_owned())
        }
    }
}

impl Admin {
    /// Returns why the program should not be sent work now.
    pub(super) fn not_ready_reason(&self) -> Option<String> {
        let reasons = self
            .parts
            .iter()
            .filter_map(|part| part.0.not_ready_reason());
        reasons.reduce(|all, next| all + "; " + &next)
    }

    /// Returns all sessions with at most `streams_max` streams in all.
    pub(super) fn sessions(&self, streams_max: usize) -> Vec<SessionView> {
        let mut left = streams_max;
        let mut all = Vec::new();
        for Inspector(part) in &self.parts {
            let sessions = part.sessions(left);
            let streams: usize = sessions.iter().map(|it| it.stats.sample.len()).sum();
            left = left.saturating_sub(streams);
            all.extend(sessions);
        }
        all
    }
}
