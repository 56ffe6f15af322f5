//! The examples, run by the tests.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::io::scope::Scope;
use tunnel::io::socket::Listener;
use tunnel::server::Server;

use crate::rig::{LONG, Rig, loopback, within};
use crate::world::connect;

#[path = "../../examples/call_through_agent.rs"]
#[expect(dead_code, reason = "the program around it")]
mod call_through_agent;

#[path = "../../examples/control_plane.rs"]
#[expect(dead_code, reason = "the program around it")]
mod control_plane;

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_called_through_an_agent() {
    let said = within(LONG, "the example", call_through_agent::call()).await;
    let expected = "200 OK: this is /hello of the private service";
    assert_eq!(said.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_lists_its_agents_and_calls_services() {
    let Rig {
        server,
        agent,
        target,
    } = Rig::start().await;
    let service = target.local_addr().unwrap();
    let (server, tasks) = (Arc::new(server), Scope::new());
    let listener = Listener::listen(loopback(), "control plane").await.unwrap();
    let api = listener.address();
    let router = control_plane::router(Arc::clone(&server), tasks.handle());
    let plane = axum::serve(control_plane::TunnelListener(listener), router);
    tasks.spawn_interruptible(async move { plane.await.unwrap() });

    let ask = async |path: &str| {
        let mut caller = connect(api).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        caller.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = caller.read_to_string(&mut answer);
        within(LONG, "the answer", read).await.unwrap();
        answer
    };
    assert!(ask("/agents").await.ends_with("\r\n\r\nweb\n"));
    assert!(ask("/call/other/a:1/").await.starts_with("HTTP/1.1 503"));
    let denied = ask("/call/web/127.0.0.2:1/").await;
    assert!(
        denied.starts_with("HTTP/1.1 502") && denied.contains("denied"),
        "{denied}"
    );

    let serve = async {
        let (mut caller, _) = target.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(caller.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        caller.write_all(answer).await.unwrap();
        (String::from_utf8(head).unwrap(), caller)
    };
    let path = format!("/call/web/{service}/a%20b/c?d=e%2F");
    let (answer, (head, caller)) = tokio::join!(ask(&path), within(LONG, "the call", serve));
    assert!(
        head.starts_with("GET /a%20b/c?d=e%2F HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(
        head.to_lowercase()
            .contains(&format!("host: {service}\r\n")),
        "{head}"
    );
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hi"),
        "{answer}"
    );

    tasks.end(LONG).await;
    drop(caller);
    agent.drain(Duration::ZERO).await;
    // Calls in progress keep the server alive.
    crate::rig::until("the callers' end", || Arc::strong_count(&server) == 1).await;
    Arc::<Server>::into_inner(server)
        .unwrap()
        .drain(Duration::ZERO)
        .await;
}
