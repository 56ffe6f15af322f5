//! The agent's way out: SOCKS5 proxies, further headers, long names.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tunnel::agent;
use tunnel::agent::Agent;
use tunnel::io::token::Token;
use tunnel::metrics::Metrics;
use tunnel::policy::Policy;
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::uplink::LinkHeaders;
use tunnel::uplink::proxy::Proxy;
use tunnel::wire::Dialect;

use crate::rig::{LONG, PROMPT, Rig, connect_fails, loopback, round_trip, token, within};
use crate::world::{connect, of_the_world};

/// A SOCKS5 proxy of a few lines. It passes bytes on to `way`, whatever is asked of it.
struct Socks5 {
    address: SocketAddr,
    /// What it was sent, without the user's login.
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Drop for Socks5 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Socks5 {
    fn start(login: Option<&'static [u8]>, reply: &'static [u8], way: SocketAddr) -> Self {
        let listener = of_the_world(std::net::TcpListener::bind(loopback()).unwrap());
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            loop {
                let (agent, _) = listener.accept().await.unwrap();
                let (mut agent, seen) = (of_the_world(agent), Arc::clone(&seen));
                tokio::spawn(async move {
                    if negotiate(&mut agent, login, reply, &seen).await.is_err() {
                        return;
                    }
                    // Behind some of the answers there is no server.
                    let Ok(mut server) = connect(way).await else {
                        return;
                    };
                    let _ = tokio::io::copy_bidirectional(&mut agent, &mut server).await;
                });
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    fn stand_before(&self, config: &mut agent::Config, scheme: &str, server: &str) {
        let url = format!("{scheme}://user:p%40ss@{}", self.address);
        config.server = server.parse().unwrap();
        let variable = |name: &str| (name == "all_proxy").then(|| url.clone());
        config.proxy = Proxy::for_server(&config.server, variable).unwrap();
        assert!(config.proxy.is_some());
    }
}

async fn negotiate(
    agent: &mut TcpStream,
    login: Option<&[u8]>,
    reply: &[u8],
    seen: &Mutex<Vec<Vec<u8>>>,
) -> std::io::Result<()> {
    let mut greeting = [0; 4];
    agent.read_exact(&mut greeting).await?;
    assert_eq!(greeting, *b"\x05\x02\x00\x02");
    match login {
        None => agent.write_all(b"\x05\x00").await?,
        Some(login) => {
            agent.write_all(b"\x05\x02").await?;
            let mut given = vec![0; login.len()];
            agent.read_exact(&mut given).await?;
            let status = u8::from(given != login);
            agent.write_all(&[1, status]).await?;
            if status != 0 {
                return Err(std::io::ErrorKind::PermissionDenied.into());
            }
        }
    }
    let mut request = vec![0; 5];
    agent.read_exact(&mut request).await?;
    let rest = match request[3] {
        1 => 3 + 2,
        3 => usize::from(request[4]) + 2,
        _ => 15 + 2,
    };
    let mut more = vec![0; rest];
    agent.read_exact(&mut more).await?;
    request.extend(more);
    seen.lock().unwrap().push(request);
    agent.write_all(reply).await?;
    match reply {
        [5, 0, ..] => Ok(()),
        _ => Err(std::io::ErrorKind::ConnectionRefused.into()),
    }
}

const LOGIN: &[u8] = b"\x01\x04user\x04p@ss";

#[tokio::test(flavor = "multi_thread")]
async fn the_link_goes_through_a_socks5_proxy() {
    // The proxy's own address may be of any kind.
    let replies: [&[u8]; 3] = [
        b"\x05\x00\x00\x01\x7f\x00\x00\x01\x1f\x90",
        b"\x05\x00\x00\x03\x05proxy\x1f\x90",
        b"\x05\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x1f\x90",
    ];
    for (reply, login, scheme, server, asked) in [
        (
            replies[0],
            None,
            "socks5h",
            "ws://tunnel.test:8123/connect",
            &b"\x05\x01\x00\x03\x0btunnel.test\x1f\xbb"[..],
        ),
        (
            replies[1],
            Some(LOGIN),
            "socks5h",
            "ws://tunnel.test:8123/connect",
            b"\x05\x01\x00\x03\x0btunnel.test\x1f\xbb",
        ),
        (
            replies[2],
            Some(LOGIN),
            "socks5",
            "ws://192.0.2.1:8123/connect",
            b"\x05\x01\x00\x01\xc0\x00\x02\x01\x1f\xbb",
        ),
        // The agent resolves it: the proxy is told an address.
        (
            replies[0],
            None,
            "socks5",
            "ws://a.localhost:8123/connect",
            b"\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x1f\xbb",
        ),
    ] {
        let mut proxy = None;
        let rig = Rig::start_with(
            |_| {},
            |agent| {
                let url = agent.server.to_string();
                let way = url.split('/').nth(2).unwrap().parse().unwrap();
                let before = Socks5::start(login, reply, way);
                before.stand_before(agent, scheme, server);
                proxy = Some(before);
            },
        )
        .await;
        let (mut visitor, mut target) = rig.pair().await;
        round_trip(&mut visitor, &mut target).await;
        drop((visitor, target));
        rig.at_rest().await;
        assert_eq!(*proxy.unwrap().asked.lock().unwrap(), [asked]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socks5_proxy_that_gives_no_connection_is_counted_and_let_go() {
    let replies: [&[u8]; 4] = [
        b"\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00",
        b"\x04\x00\x00\x01\x00\x00\x00\x00\x00\x00",
        b"\x05\x00\x00\x09\x00\x00\x00\x00\x00\x00",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ];
    let cases = replies.map(|reply| (None, reply)).into_iter();
    let wrong: &[u8] = b"\x01\x04user\x04pass";
    for (login, reply) in cases.chain([(Some(wrong), replies[0])]) {
        let proxy = Socks5::start(login, reply, loopback());
        let url = "ws://tunnel.test:8123/connect";
        let (policy, name) = (Policy::default(), "web".to_owned());
        let mut config = agent::Config::new(url.parse().unwrap(), name, policy, token());
        proxy.stand_before(&mut config, "socks5h", url);
        config.backoff = (Duration::from_secs(60), Duration::from_secs(60));
        let metrics = Metrics::new(None).unwrap();
        let agent = Agent::start(config, Some(Arc::clone(&metrics)));
        connect_fails(&metrics, "proxy").await;
        within(PROMPT, "the drain", agent.drain(Duration::ZERO)).await;
    }
}

/// A gateway that wants Basic credentials, and passes on what has them without looking further.
async fn gateway(way: SocketAddr, heads: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = of_the_world(TcpListener::bind(loopback()).await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (agent, _) = listener.accept().await.unwrap();
            let (mut agent, heads) = (of_the_world(agent), Arc::clone(&heads));
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(agent.read_u8().await.unwrap());
                }
                let text = String::from_utf8(head.clone()).unwrap().to_lowercase();
                let is_let_in = text.contains("authorization: basic dxnlcjpwyxnz\r\n");
                heads.lock().unwrap().push(text);
                if !is_let_in {
                    let refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
                    let _ = agent.write_all(refusal).await;
                    return;
                }
                let mut server = connect(way).await.unwrap();
                server.write_all(&head).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut agent, &mut server).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn further_headers_let_the_link_through_a_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("headers");
    std::fs::write(&file, "Authorization: Basic user:pass\nX-Gateway: 1\n").unwrap();
    let headers = LinkHeaders::from_file(&file).unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let rig = Rig::start().await;
    let address = gateway(rig.server.front(), Arc::clone(&heads)).await;
    let url = format!("ws://{address}/connect").parse().unwrap();
    let mut config = agent::Config::new(url, "other".to_owned(), Policy::default(), token());
    config.backoff = (Duration::from_millis(20), Duration::from_millis(20));
    let metrics = Metrics::new(None).unwrap();
    let agent = Agent::start(config, Some(Arc::clone(&metrics)));
    connect_fails(&metrics, "refused").await;
    // They are taken while the agent runs.
    agent.set_link_headers(headers);
    within(LONG, "the link", agent.connected()).await;
    let head = heads.lock().unwrap().last().unwrap().clone();
    assert!(head.contains("x-gateway: 1\r\n"), "{head}");
    assert!(head.contains("x-tunnel-token: secret\r\n"), "{head}");
    assert!(!head.contains("bearer"), "{head}");
    agent.drain(PROMPT).await;
    rig.agent.drain(PROMPT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_either_header_must_be_the_agent_s() {
    let rig = Rig::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("headers");
    // The server's own header counts, not what the gateway was shown.
    std::fs::write(&file, "Authorization: Bearer secret\n").unwrap();
    let url = format!("ws://{}/connect", rig.server.front())
        .parse()
        .unwrap();
    let wrong = Token::new("wrong", "test").unwrap();
    let mut config = agent::Config::new(url, "other".to_owned(), Policy::default(), wrong);
    config.link_headers = LinkHeaders::from_file(&file).unwrap();
    let metrics = Metrics::new(None).unwrap();
    let agent = Agent::start(config, Some(Arc::clone(&metrics)));
    connect_fails(&metrics, "refused").await;
    agent.drain(PROMPT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_kubernetes_and_of_remotedialer_s_clients_are_taken() {
    let long = format!("{}.cluster.example", "a".repeat(237));
    assert_eq!(long.len(), 253);
    for name in [&long, "c-abcde:m-12345"] {
        for dialect in [Dialect::Native, Dialect::Remotedialer] {
            let rig = Rig::start_with(
                |server| {
                    server.remotedialer = Some(Remotedialer::default());
                    server.forwards[0].agent = name.to_owned();
                },
                |_| {},
            )
            .await;
            let mut config = crate::rig::agent_config(
                &rig.server,
                &[rig.target.local_addr().unwrap().to_string()],
            );
            config.name = name.to_owned();
            config.dialect = dialect;
            let agent = Agent::start(config, None);
            within(LONG, "the link", agent.connected()).await;
            crate::rig::until("the registration", || rig.server.has_agent(name)).await;
            let (mut visitor, mut target) = rig.pair().await;
            round_trip(&mut visitor, &mut target).await;
            agent.drain(Duration::ZERO).await;
        }
    }
}
