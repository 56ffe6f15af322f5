//! A control plane with the tunnel inside: it lists its agents, and calls private services through
//! them.
//!
//!     export TUNNEL_TOKEN=$(openssl rand -hex 32)
//!     cargo run -p tunnel --example control_plane -- 127.0.0.1:8080 127.0.0.1:8123
//!     tunnel agent --server ws://127.0.0.1:8123/connect --name home --allow 127.0.0.1:9000
//!     curl http://127.0.0.1:8080/agents
//!     curl http://127.0.0.1:8080/call/home/127.0.0.1:9000/some/path
//! Anyone who can connect to the first address can call what the agents allow. A real control plane
//! authenticates its callers.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONNECTION, HOST};
use axum::http::{Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper_util::client::legacy::Client;
use tunnel::io::scope;
use tunnel::io::scope::Scope;
use tunnel::io::socket::{Listener, NOBODY, Role, Socket};
use tunnel::io::token::Token;
use tunnel::{Connector, Server, server};

/// The most clients that are kept. The agent's name comes from the caller, so there must be a
/// limit.
const CLIENTS_MAX: usize = 1000;

#[derive(Clone)]
struct ControlPlane {
    server: Arc<Server>,
    /// One client for each agent, because a pool distinguishes its connections only by host and
    /// port.
    clients: Arc<Mutex<HashMap<String, Client<Connector, Body>>>>,
    tasks: scope::Handle,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut address = || arguments.next().unwrap_or("127.0.0.1:0".to_owned()).parse();
    let (api, front): (SocketAddr, SocketAddr) = (address()?, address()?);
    let token = Token::new(&std::env::var("TUNNEL_TOKEN")?, "TUNNEL_TOKEN")?;
    let server = Server::start(server::Config::new(front, token)).await?;
    let listener = Listener::listen(api, "control plane").await?;
    let mut out = std::io::stdout();
    writeln!(out, "listening api={}", listener.address())?;
    writeln!(out, "listening front={}", server.front())?;
    out.flush()?;

    let tasks = Scope::new();
    let server = Arc::new(server);
    let router = router(Arc::clone(&server), tasks.handle());
    tokio::select! {
        result = axum::serve(TunnelListener(listener), router) => result?,
        result = tokio::signal::ctrl_c() => result?,
    }
    tasks.end(Duration::from_secs(1)).await;
    if let Some(server) = Arc::into_inner(server) {
        server.drain(Duration::from_secs(5)).await;
    }
    Ok(())
}

/// Serves `/agents` and `/call/{agent}/{host:port}/{path}`.
pub(crate) fn router(server: Arc<Server>, tasks: scope::Handle) -> Router {
    let plane = ControlPlane {
        server,
        clients: Arc::default(),
        tasks,
    };
    Router::new()
        .route("/agents", get(agents))
        .route("/call/{*rest}", any(call))
        .with_state(plane)
}

/// Lists the agents that are connected here, one a line.
async fn agents(State(plane): State<ControlPlane>) -> String {
    let names = plane.server.agents();
    names.into_iter().map(|name| name + "\n").collect()
}

/// Passes a request on to `http://{host:port}/{path}` as the agent sees it.
async fn call(State(plane): State<ControlPlane>, mut request: Request<Body>) -> Response {
    let path = request.uri().path_and_query();
    let rest = path.map_or("", |path| path.as_str());
    let rest = rest.strip_prefix("/call/").unwrap_or_default();
    let (agent, url) = rest.split_once('/').unwrap_or((rest, ""));
    if !plane.server.has_agent(agent) {
        return (StatusCode::SERVICE_UNAVAILABLE, "no such agent\n").into_response();
    }
    let Ok(uri) = format!("http://{url}").parse::<Uri>() else {
        return (StatusCode::BAD_REQUEST, "not a host:port and a path\n").into_response();
    };
    let agent = agent.to_owned();
    *request.uri_mut() = uri;
    // The client writes its own.
    for header in [HOST, CONNECTION] {
        request.headers_mut().remove(header);
    }
    match plane.client(&agent).request(request).await {
        Ok(response) => response.into_response(),
        Err(error) => {
            let why = Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            (StatusCode::BAD_GATEWAY, format!("{why}\n")).into_response()
        }
    }
}

impl ControlPlane {
    fn client(&self, agent: &str) -> Client<Connector, Body> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENTS_MAX {
            clients.retain(|agent, _| self.server.has_agent(agent));
        }
        let new = || self.server.dialer(agent).client(self.tasks.clone());
        clients.entry(agent.to_owned()).or_insert_with(new).clone()
    }
}

/// Accepts axum's connections through the tunnel's socket module, so that a tracer knows their
/// owners.
pub(crate) struct TunnelListener(pub(crate) Listener);

impl axum::serve::Listener for TunnelListener {
    type Io = Socket;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Socket, SocketAddr) {
        let socket = self.0.accept().await;
        socket.bind(Role::Pool, NOBODY, "a caller of the control plane");
        let peer = match socket.peer_addr() {
            tunnel::io::socket::PeerAddr::Inet(address) => address,
            tunnel::io::socket::PeerAddr::Unix => self.0.address(),
        };
        (socket, peer)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.0.address())
    }
}
