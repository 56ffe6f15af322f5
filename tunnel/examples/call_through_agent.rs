//! A server, an agent and a small HTTP service in one process: calls the service through the agent
//! and prints what it says.
//!
//!     cargo run -p tunnel --example call_through_agent

use std::convert::Infallible;
use std::error::Error;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioIo;
use tunnel::io::scope;
use tunnel::io::scope::Scope;
use tunnel::io::socket::{Listener, NOBODY, Role};
use tunnel::io::token::Token;
use tunnel::policy::Policy;
use tunnel::{Agent, Connector, Server, agent, server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    writeln!(std::io::stdout(), "{}", call().await?)?;
    Ok(())
}

/// Returns what the service said.
pub(crate) async fn call() -> Result<String, Box<dyn Error>> {
    let tasks = Scope::new();

    // The private service. Its sockets are the tunnel's, so that
    // a tracer knows their owners.
    let service = Listener::listen("127.0.0.1:0".parse()?, "the service").await?;
    let target = service.address();
    tasks.spawn_interruptible(serve(service, tasks.handle()));

    // The public side. Agents connect to its front; this program needs no port for visitors.
    let token = Token::new("a-secret-of-32-characters-or-more", "the example")?;
    let server = Server::start(server::Config::new("127.0.0.1:0".parse()?, token.clone())).await?;

    // The private side, which usually runs elsewhere. It dials only what its policy allows.
    let url = format!("ws://{}/connect", server.front()).parse()?;
    let policy = Policy::new(vec![target.to_string().parse()?]);
    let agent = Agent::start(
        agent::Config::new(url, "home".to_owned(), policy, token),
        None,
    );
    tokio::time::timeout(Duration::from_secs(10), agent.connected()).await?;
    while !server.has_agent("home") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    // The client's connections are streams of the tunnel. Their tasks belong to the scope.
    let client: Client<Connector, Empty<Bytes>> = server.dialer("home").client(tasks.handle());
    let response = client
        .get(format!("http://{target}/hello").parse()?)
        .await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let said = format!("{status}: {}", String::from_utf8_lossy(&body));

    // End everything and wait for it: no task and no socket is left.
    drop(client);
    tasks.end(Duration::from_secs(1)).await;
    agent.drain(Duration::from_secs(1)).await;
    server.drain(Duration::from_secs(1)).await;
    Ok(said)
}

async fn serve(listener: Listener, tasks: scope::Handle) {
    loop {
        let socket = listener.accept().await;
        socket.bind(Role::Pool, NOBODY, "a caller of the service");
        tasks.spawn_interruptible(async move {
            let service = service_fn(|request: Request<Incoming>| async move {
                let text = format!("this is {} of the private service", request.uri().path());
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            let connection = hyper::server::conn::http1::Builder::new();
            // A broken connection is not an error of the service.
            let _ = connection
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}
