//! Requests and responses.

use std::fmt::Display;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;

use crate::admin::view::{Sessions, Streams};
use crate::admin::{Shared, page};
use crate::http::authorization::Sent;
use crate::http::host;
use crate::io::socket::{PeerAddr, Socket};
use crate::login::{LoginPort, LoginRefused};

const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What every response tells browsers: no script runs, nothing is loaded or framed, no type is
/// guessed, and no other site reads it.
const SECURITY_HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// Serves one connection until it ends.
pub(super) async fn serve(shared: &Shared, router: Router, socket: Socket) {
    let peer = socket.peer_addr();
    let router = router.layer(Extension(peer));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.config.silence)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the admin port ended early");
    }
}

/// Returns what responds to requests.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/livez", get("alive\n"))
        .route("/readyz", get(readyz))
        .route("/admin/sessions", get(sessions))
        .route("/admin/streams", get(streams))
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

/// The paths that need no login.
const PUBLIC: [&str; 2] = ["/livez", "/readyz"];

/// Whether the request comes from one who may see everything.
#[derive(Clone, Copy)]
struct SeesAll(bool);

/// Refuses requests by a foreign host name, requests to change something, and those without a login
/// where one is needed.
async fn guard(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<PeerAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut response = match host::check(&request, &shared.config.hosts, "admin-host") {
        Err(refusal) => refusal.into_response(),
        Ok(()) if matches!(*request.method(), Method::GET | Method::HEAD) => {
            let is_public = PUBLIC.contains(&request.uri().path());
            let login = login(&shared, peer, request.headers()).await;
            match login {
                Err(refused) if !is_public || refused != LoginRefused::Missing => refusal(refused),
                Ok(()) | Err(_) => {
                    request.extensions_mut().insert(SeesAll(login.is_ok()));
                    next.run(request).await
                }
            }
        }
        Ok(()) => (
            StatusCode::METHOD_NOT_ALLOWED,
            [(header::ALLOW, "GET, HEAD")],
            "the admin port answers GET and HEAD\n",
        )
            .into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Lets in everybody unless there are users.
async fn login(shared: &Shared, peer: PeerAddr, headers: &HeaderMap) -> Result<(), LoginRefused> {
    let users = &shared.config.users;
    if users.is_empty() {
        return Ok(());
    }
    let sent = Sent::read(headers, &header::AUTHORIZATION);
    let presented = sent.as_ref().and_then(Sent::presented);
    let logins = &shared.admin.logins;
    let login = logins.log_in(users, LoginPort::Admin, peer, presented);
    login.await.map(drop)
}

fn refusal(refused: LoginRefused) -> Response {
    let status = refused.status(StatusCode::UNAUTHORIZED);
    let mut response = (status, format!("{refused}\n")).into_response();
    let headers = response.headers_mut();
    refused.add_retry_after(headers);
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"tunnel admin\", charset=\"UTF-8\"");
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

async fn page(State(shared): State<Arc<Shared>>) -> Html<String> {
    Html(page::write(&shared.admin))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ok_or_internal(PROMETHEUS, shared.admin.metrics.text())
}

async fn readyz(
    State(shared): State<Arc<Shared>>,
    Extension(SeesAll(sees_all)): Extension<SeesAll>,
) -> (StatusCode, String) {
    match shared.admin.not_ready_reason() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(_) if !sees_all => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
        Some(why) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {why}\n"),
        ),
    }
}

async fn sessions(State(shared): State<Arc<Shared>>) -> Response {
    let sessions = shared.admin.sessions(0);
    json(&Sessions { sessions })
}

async fn streams(State(shared): State<Arc<Shared>>) -> Response {
    let Shared { admin, config } = &*shared;
    json(&Streams::of(admin.sessions(config.streams_max)))
}

async fn not_found() -> (StatusCode, &'static str) {
    (
        StatusCode::NOT_FOUND,
        "there are /, /metrics, /livez, /readyz, /admin/sessions and /admin/streams\n",
    )
}

fn json(value: &impl Serialize) -> Response {
    ok_or_internal(JSON, serde_json::to_string(value).map(|text| text + "\n"))
}

fn ok_or_internal(kind: &'static str, text: Result<String, impl Display>) -> Response {
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
