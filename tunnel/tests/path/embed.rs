//! The tunnel as a library: dialers and the connector, over both dialects, peers and reconnects.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::agent::Agent;
use tunnel::io::scope::Scope;
use tunnel::mux::Reason;
use tunnel::policy::Policy;
use tunnel::server::auth::access::{Grant, Rights};
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::target::Target;
use tunnel::wire::Dialect;
use tunnel::{Connector, DialError, Dialer, Stream};

use crate::rig::{LONG, PROMPT, Rig, agent_config, drain, pattern, token, until, within};
use crate::world::TcpListener;

/// A dialed stream and the target's end of it.
async fn dial(rig: &Rig, dialer: &Dialer) -> (Stream, TcpStream) {
    let address = rig.target.local_addr().unwrap();
    let target = Target::tcp(&address.to_string(), None).unwrap();
    let (stream, accepted) = tokio::join!(
        within(LONG, "the dial", dialer.dial(&target)),
        within(LONG, "the accept", rig.target.accept()),
    );
    (stream.unwrap(), accepted.unwrap().0)
}

async fn read_to_end(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    within(PROMPT, "the end", stream.read_to_end(&mut bytes)).await?;
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dialed_stream_half_closes_and_ends_as_a_connection_does() {
    let rig = Rig::start().await;
    let dialer = rig.server.dialer("web");
    let (mut stream, mut target) = dial(&rig, &dialer).await;
    let sent = pattern(1 << 20);
    let write = async {
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let (got, ()) = tokio::join!(read_to_end(&mut target), write);
    assert_eq!(got.unwrap(), sent);
    // The other half goes on, and its end is an orderly one.
    target.write_all(b"late answer").await.unwrap();
    target.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await.unwrap(), b"late answer");
    drop(stream);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_finished_is_delivered_after_the_drop_and_what_was_not_is_reset() {
    let rig = Rig::start().await;
    let dialer = rig.server.dialer("web");
    let (mut stream, mut target) = dial(&rig, &dialer).await;
    stream.write_all(&pattern(100_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(read_to_end(&mut target).await.unwrap(), pattern(100_000));
    target.shutdown().await.unwrap();
    rig.at_rest().await;

    // Nothing is left to read an answer.
    let (mut stream, mut target) = dial(&rig, &dialer).await;
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(read_to_end(&mut target).await.unwrap(), b"");
    until("the reset", || target.try_write(b"unwanted").is_err()).await;
    rig.at_rest().await;

    let (mut stream, mut target) = dial(&rig, &dialer).await;
    stream.write_all(b"half").await.unwrap();
    drop(stream);
    assert!(read_to_end(&mut target).await.is_err());
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_let_go_of_does_not_outlast_its_parting() {
    let linger_timeout = Duration::from_millis(50);
    let rig = Rig::start_with(|server| server.mux.linger_timeout = linger_timeout, |_| {}).await;
    let (mut stream, target) = dial(&rig, &rig.server.dialer("web")).await;
    stream.shutdown().await.unwrap();
    drop(stream);
    // The target never finishes.
    rig.at_rest().await;
    until("the reset", || target.try_write(b"x").is_err()).await;
    let text = rig.server.counters().text().unwrap();
    let ended = "watertight_streams_ended_total{reason=\"timed out\"} 1";
    assert!(text.contains(ended), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finish_in_remotedialers_dialect_ends_the_stream_behind_what_was_written() {
    let rig = Rig::start_with(
        |server| server.remotedialer = Some(Remotedialer::default()),
        |agent| agent.dialect = Dialect::Remotedialer,
    )
    .await;
    let (mut stream, mut target) = dial(&rig, &rig.server.dialer("web")).await;
    target.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut [0; 5]).await.unwrap();
    stream.write_all(&pattern(100_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(read_to_end(&mut target).await.unwrap(), pattern(100_000));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dialer_outlives_the_links_of_its_agent() {
    let Rig {
        server,
        agent,
        target,
    } = Rig::start().await;
    let dialer = server.dialer("web");
    drop(agent);
    until("the end of the session", || !dialer.is_connected()).await;
    let address = target.local_addr().unwrap();
    let text = format!("tcp/{address}");
    let error = dialer.dial(text.as_str()).await.unwrap_err();
    assert_eq!(error, DialError::NotConnected("web".to_owned()));
    assert_eq!(error.reason(), None);
    // An agent of a library needs no counters.
    let agent = Agent::start(agent_config(&server, &[address.to_string()]), None);
    within(LONG, "connecting", agent.connected()).await;
    until("the registration", || dialer.is_connected()).await;
    let rig = Rig {
        server,
        agent,
        target,
    };
    let (mut stream, mut target) = dial(&rig, &dialer).await;
    target.write_all(b"again").await.unwrap();
    drop(target);
    assert_eq!(read_to_end(&mut stream).await.unwrap(), b"again");
    drop(stream);

    let Rig { server, agent, .. } = rig;
    within(LONG, "the drain", server.drain(Duration::ZERO)).await;
    let error = dialer.dial(text.as_str()).await.unwrap_err();
    assert_eq!(error, DialError::NotConnected("web".to_owned()));
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_dial_says_why() {
    let rig = Rig::start().await;
    let dialer = rig.server.dialer("web");
    let error = dialer.dial("tcp/127.0.0.2:1").await.unwrap_err();
    assert!(
        matches!(&error, DialError::Refused { agent, target, reason: Reason::Denied }
            if agent == "web" && target.to_string() == "tcp/127.0.0.2:1"),
        "{error:?}"
    );
    assert!(matches!(
        dialer.dial("http://a/").await.unwrap_err(),
        DialError::Target(_)
    ));
    let text = rig.server.counters().text().unwrap();
    let denied = "watertight_open_failures_total{reason=\"denied\"} 1";
    assert!(text.contains(denied), "{text}");
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_asked_for_no_more_than_it_has_a_right_to_serve() {
    let rights = Rights {
        targets: Some(Policy::new(vec!["127.0.0.1:1".parse().unwrap()])),
        ports: None,
        peers: None,
    };
    let rig = Rig::start_with(
        |server| {
            let tokens = vec![token().digest()];
            let grant = Grant {
                tokens,
                rights,
                ..Grant::default()
            };
            server.access.grant("web".to_owned(), grant);
        },
        |_| {},
    )
    .await;
    let target = Target::tcp(&rig.target.local_addr().unwrap().to_string(), None).unwrap();
    let error = rig.server.dialer("web").dial(&target).await.unwrap_err();
    let agent = "web".to_owned();
    assert_eq!(error.reason(), Some(Reason::Denied));
    assert_eq!(error, DialError::NoRight { agent, target });
}

/// What a target has seen.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    ended: AtomicUsize,
}

/// Answers every request with its path, until the clients end their connections.
async fn answer(target: &TcpListener, seen: &Arc<Seen>, tasks: &Scope) {
    loop {
        let (mut target, _) = target.accept().await.unwrap();
        seen.connections.fetch_add(1, Ordering::SeqCst);
        let seen = Arc::clone(seen);
        tasks.spawn(async move {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while let Ok(1) = target.read(&mut byte).await {
                head.push(byte[0]);
                if head.ends_with(b"\r\n\r\n") {
                    let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
                    let path = text.split(' ').nth(1).unwrap();
                    let length = path.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{path}");
                    target.write_all(answer.as_bytes()).await.unwrap();
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                }
            }
            seen.ended.fetch_add(1, Ordering::SeqCst);
        });
    }
}

async fn get(client: &Client<Connector, Empty<Bytes>>, uri: String, body: &str) {
    let request = client.get(uri.parse().unwrap());
    let response = within(LONG, "the response", request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let collected = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(collected, body.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reuses_its_connections_and_lets_them_go() {
    let rig = Rig::start().await;
    let address = rig.target.local_addr().unwrap();
    let dialer = rig.server.dialer("web");
    let (tasks, seen) = (Scope::new(), Arc::<Seen>::default());
    let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    let requests = async {
        // A scope that ends takes what its client pooled with it.
        let scope = Scope::new();
        let client = dialer.client(scope.handle());
        for number in 0..20 {
            let path = format!("/a?b={number}");
            get(&client, format!("http://{address}{path}"), &path).await;
        }
        assert_eq!(count(&seen.requests), 20);
        assert!(count(&seen.connections) < 20);
        scope.end(LONG).await;
        until("the end of the pool", || {
            count(&seen.ended) == count(&seen.connections)
        })
        .await;

        // So does a timeout.
        let client = Client::builder(tasks.handle())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_millis(100))
            .build(dialer.connector());
        get(&client, format!("http://{address}/"), "/").await;
        until("the idle timeout", || {
            count(&seen.ended) == count(&seen.connections)
        })
        .await;
        client
    };
    let client = tokio::select! {
        client = requests => client,
        () = answer(&rig.target, &seen, &tasks) => unreachable!(),
    };
    rig.at_rest().await;

    let uri = format!("https://{address}/").parse().unwrap();
    assert!(client.get(uri).await.is_err());
    let uri = "http://127.0.0.2:1/".parse().unwrap();
    let error = client.get(uri).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("denied"), "{source}");
    tasks.end(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drained_streams_end_in_time() {
    let rig = Rig::start().await;
    let (stream, mut target) = dial(&rig, &rig.server.dialer("web")).await;
    let drain_server = rig.server.drain(Duration::from_millis(100));
    within(LONG, "the drain", drain_server).await;
    assert!(
        within(PROMPT, "the reset", drain(&mut target))
            .await
            .is_err()
    );
    drop(stream);
}
