//! An HTTP proxy between an agent and its server.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tunnel::agent;
use tunnel::agent::Agent;
use tunnel::metrics::Metrics;
use tunnel::policy::Policy;
use tunnel::uplink::proxy::Proxy;

use crate::rig::{PROMPT, Rig, connect_fails, loopback, round_trip, token, until, within};
use crate::tls::Secured;
use crate::world::{connect, of_the_world};

/// Answers each CONNECT with a script of its own, and passes bytes on if it has a way to.
struct FakeProxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeProxy {
    fn start(answer: &'static [u8], way: Option<SocketAddr>) -> Self {
        let listener = of_the_world(std::net::TcpListener::bind(loopback()).unwrap());
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            loop {
                let (agent, _) = listener.accept().await.unwrap();
                let mut agent = of_the_world(agent);
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        if agent.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    seen.lock().unwrap().push(String::from_utf8(head).unwrap());
                    if agent.write_all(answer).await.is_err() {
                        return;
                    }
                    match way {
                        Some(way) => {
                            let mut server = connect(way).await.unwrap();
                            let _ = tokio::io::copy_bidirectional(&mut agent, &mut server).await;
                        }
                        // Until the agent lets go.
                        None => while agent.read(&mut [0]).await.is_ok_and(|read| read > 0) {},
                    }
                    drop(seen);
                });
            }
        });
        Self {
            address,
            heads,
            task,
        }
    }

    fn variables(&self, name: &str) -> Option<String> {
        (name == "http_proxy").then(|| format!("http://user:can%61ry@{}", self.address))
    }

    /// Sends the agent through this proxy to a server that only the proxy knows.
    fn stand_before(&self, config: &mut agent::Config) {
        config.server = "ws://tunnel.test:8123/connect".parse().unwrap();
        config.proxy = Proxy::for_server(&config.server, |name| self.variables(name)).unwrap();
        assert!(config.proxy.is_some());
    }
}

/// Some proxies end their lines with a bare LF.
const GRANTED_BY_LF: &[u8] = b"HTTP/1.0 200 Connection established\nVia: a\n\n";

const GRANTED: &[u8] = b"HTTP/1.1 200 Connection established\r\nVia: a\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_link_goes_through_the_proxy_and_the_targets_do_not() {
    for granted in [GRANTED, GRANTED_BY_LF] {
        through_the_proxy(granted).await;
    }
}

async fn through_the_proxy(granted: &'static [u8]) {
    let mut proxy = None;
    let rig = Rig::start_with(
        |_| {},
        |agent| {
            let url = agent.server.to_string();
            let server = url.split('/').nth(2).unwrap().parse().unwrap();
            let before = FakeProxy::start(granted, Some(server));
            before.stand_before(agent);
            proxy = Some(before);
        },
    )
    .await;
    let (mut visitor, mut target) = rig.pair().await;
    visitor.write_all(b"question").await.unwrap();
    let read = within(PROMPT, "the question", target.read_exact(&mut [0; 8])).await;
    read.unwrap();
    drop((visitor, target));
    rig.at_rest().await;
    let credentials = "Basic dXNlcjpjYW5hcnk=";
    assert_eq!(
        *proxy.unwrap().heads.lock().unwrap(),
        [format!(
            "CONNECT tunnel.test:8123 HTTP/1.1\r\nHost: tunnel.test:8123\r\nProxy-Authorization: {credentials}\r\n\r\n"
        )]
    );
}

/// The proxy sees whom the agent wants, and TLS.
#[tokio::test(flavor = "multi_thread")]
async fn tls_runs_inside_the_proxys_connection() {
    let mut proxy = None;
    let secured = Secured::start_with(
        |_| {},
        |agent| {
            let url = agent.server.to_string();
            let server = url.split('/').nth(2).unwrap().parse().unwrap();
            let before = FakeProxy::start(GRANTED, Some(server));
            before.stand_before(agent);
            proxy = Some(before);
        },
    )
    .await;
    let (mut visitor, mut target) = secured.rig.pair().await;
    round_trip(&mut visitor, &mut target).await;
    drop((visitor, target));
    secured.rig.at_rest().await;
    let heads = proxy.unwrap().heads.lock().unwrap().concat();
    assert!(
        heads.starts_with("CONNECT tunnel.test:8123 HTTP/1.1\r\n"),
        "{heads}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_gives_no_connection_is_counted_and_let_go() {
    let endless: &[u8] = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 100_000]]
        .concat()
        .leak();
    for (answer, reason) in [
        (
            &b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..],
            "proxy",
        ),
        (
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad",
            "proxy",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "proxy"),
        // These bytes do not come from the server.
        (
            b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n",
            "proxy",
        ),
        (endless, "proxy"),
        (b"HTTP/1.1 200 OK\r\n", "timed out"),
        // A tunnel without a server.
        (GRANTED, "timed out"),
    ] {
        let proxy = FakeProxy::start(answer, None);
        let url = "ws://tunnel.test:8123/connect".parse().unwrap();
        let policy = Policy::default();
        let mut config = agent::Config::new(url, "web".to_owned(), policy, token());
        proxy.stand_before(&mut config);
        config.connect_timeout = Duration::from_millis(300);
        config.backoff = (Duration::from_secs(60), Duration::from_secs(60));
        let metrics = Metrics::new(None).unwrap();
        let agent = Agent::start(config, Some(Arc::clone(&metrics)));
        connect_fails(&metrics, reason).await;
        until("letting go", || Arc::strong_count(&proxy.heads) == 2).await;
        within(PROMPT, "the drain", agent.drain(Duration::ZERO)).await;
    }
}

#[test]
fn no_secret_of_a_proxy_is_told() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
    let proxy = runtime.block_on(async { FakeProxy::start(answer, None) });
    let agent = |variable: &str, value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunnel"));
        command
            .args([
                "agent",
                "--server",
                "ws://tunnel.test:1/connect",
                "--name",
                "web",
            ])
            .env("TUNNEL_TOKEN", "secret")
            .env("TUNNEL_LOG", "trace")
            .env(variable, value)
            .stderr(Stdio::piped());
        command
    };
    let url = proxy.variables("http_proxy").unwrap();
    let mut child = agent("HTTP_PROXY", &url).spawn().unwrap();
    runtime.block_on(until("the request", || {
        !proxy.heads.lock().unwrap().is_empty()
    }));
    let mut log = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    while !log.contains("cannot connect") {
        assert!(lines.read_line(&mut log).unwrap() > 0, "{log}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(log.contains("wants a user and a password"), "{log}");
    let malformed = agent("ALL_PROXY", "socks4://user:canary@a:1")
        .output()
        .unwrap();
    assert_eq!(malformed.status.code(), Some(1));
    let told = String::from_utf8(malformed.stderr).unwrap();
    assert!(
        told.contains("ALL_PROXY does not name an HTTP proxy"),
        "{told}"
    );
    for text in [log, told] {
        for secret in ["canary", "can%61ry", "dXNlcjpjYW5hcnk="] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
