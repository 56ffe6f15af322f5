//! A server, an agent and a target on loopback, all in this process.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::agent::Agent;
use tunnel::io::token::Token;
use tunnel::metrics::{Compat, Metrics};
use tunnel::policy::Policy;
use tunnel::server::config::{HttpPort, HttpSocket};
use tunnel::server::{Forward, Server};
use tunnel::target::Target;
use tunnel::{agent, server};

use crate::world::{TcpListener, connect};

/// Far more than anything takes, so that a hang fails the test.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// What "at once" may take on a busy machine.
pub(crate) const PROMPT: Duration = Duration::from_secs(3);

pub(crate) struct Rig {
    pub(crate) server: Server,
    pub(crate) agent: Agent,
    pub(crate) target: TcpListener,
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn token() -> Token {
    Token::new("secret", "test").unwrap()
}

pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took more than {limit:?}"))
}

/// Polls until a condition holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(PROMPT, what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Waits until an agent has failed to reach its server for this reason.
pub(crate) async fn connect_fails(metrics: &Metrics, reason: &str) {
    let none = format!("watertight_connect_failures_total{{reason=\"{reason}\"}} 0\n");
    assert!(Metrics::new(None).unwrap().text().unwrap().contains(&none));
    until(reason, || !metrics.text().unwrap().contains(&none)).await;
}

pub(crate) fn server_config(target: SocketAddr) -> server::Config {
    let mut config = server::Config::new(loopback(), token());
    config.forwards = vec![Forward {
        listen: loopback().into(),
        agent: "web".to_owned(),
        target: Target::tcp(&target.to_string(), None).unwrap(),
    }];
    config.compat_metrics = Some(Compat::Remotedialer);
    config
}

/// Serves HTTP visitors at the front.
pub(crate) fn with_http(config: &mut server::Config) {
    let port = HttpPort::new(config.listen.into(), HttpSocket::Shared);
    config.ports.push(port.into());
}

pub(crate) fn agent_config(server: &Server, allow: &[String]) -> agent::Config {
    let url = format!("ws://{}/connect", server.front()).parse().unwrap();
    let rules = allow.iter().map(|rule| rule.parse().unwrap()).collect();
    agent::Config::new(url, "web".to_owned(), Policy::new(rules), token())
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}, |_| {}).await
    }

    pub(crate) async fn start_with(
        server: impl FnOnce(&mut server::Config),
        agent: impl FnOnce(&mut agent::Config),
    ) -> Self {
        let target = TcpListener::bind(loopback()).await.unwrap();
        let address = target.local_addr().unwrap();
        let mut config = server_config(address);
        server(&mut config);
        let server = Server::start(config).await.unwrap();
        let mut config = agent_config(&server, &[address.to_string()]);
        agent(&mut config);
        let counters = Metrics::new(Some(Compat::Remotedialer)).unwrap();
        let agent = Agent::start(config, Some(counters));
        within(LONG, "connecting", agent.connected()).await;
        until("the registration", || server.has_agent("web")).await;
        Self {
            server,
            agent,
            target,
        }
    }

    /// Connects a visitor to the forward and takes the target's end of it.
    pub(crate) async fn pair(&self) -> (TcpStream, TcpStream) {
        let visitor = self.visitor().await;
        let (target, _) = within(LONG, "the dial", self.target.accept())
            .await
            .unwrap();
        (visitor, target)
    }

    pub(crate) async fn visitor(&self) -> TcpStream {
        connect(self.server.forwards()[0]).await.unwrap()
    }

    /// Every stream must be gone, and its tasks with it: what is left is the link, and the task
    /// that reads what comes over it.
    pub(crate) async fn at_rest(&self) {
        self.at_rest_but(0).await;
    }

    /// As [`Self::at_rest`], but so many visitors of the front are still connected.
    pub(crate) async fn at_rest_but(&self, visitors: usize) {
        until("coming to rest", || self.server.tasks() <= 2 + visitors).await;
        within(PROMPT, "the agent's streams", self.agent.idle()).await;
        let agent = self.agent.counters();
        for counters in agent.into_iter().chain([self.server.counters()]) {
            let text = counters.text().unwrap();
            assert_eq!(left(&text, "connections"), 0, "{text}");
            assert!(text.contains("watertight_streams 0"), "{text}");
        }
    }
}

/// How many more were added than removed of what a remotedialer counter pair counts.
pub(crate) fn left(text: &str, name: &str) -> u64 {
    sum(text, &format!("add_{name}")) - sum(text, &format!("remove_{name}"))
}

/// Sums a remotedialer counter over all its labels.
pub(crate) fn sum(text: &str, name: &str) -> u64 {
    text.lines()
        .filter(|line| line.starts_with(&format!("session_server_total_{name}{{")))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// Makes the release of a socket a reset.
pub(crate) fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

/// One byte there and one back.
pub(crate) async fn round_trip(visitor: &mut TcpStream, target: &mut TcpStream) {
    let trip = async {
        visitor.write_all(b"?").await.unwrap();
        target.read_exact(&mut [0]).await.unwrap();
        target.write_all(b"!").await.unwrap();
        visitor.read_exact(&mut [0]).await.unwrap();
    };
    within(PROMPT, "the round trip", trip).await;
}

/// Both ends were reset.
pub(crate) async fn broken(visitor: &mut TcpStream, target: &mut TcpStream) {
    let visitor = within(PROMPT, "the visitor's reset", drain(visitor)).await;
    let target = within(PROMPT, "the target's reset", drain(target)).await;
    assert!(
        visitor.is_err() && target.is_err(),
        "{visitor:?} {target:?}"
    );
}

/// Writes until the way is full: nothing moved for a while.
pub(crate) async fn fill(stream: &mut TcpStream) -> usize {
    let data = vec![1; 64 * 1024];
    let mut total = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(300), stream.write(&data)).await
    {
        total += written.unwrap();
    }
    total
}

/// Reads to the end and returns what ended it.
pub(crate) async fn drain(stream: &mut TcpStream) -> std::io::Result<usize> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(total),
            read => total += read,
        }
    }
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9) >> 16).to_le_bytes()[0])
        .collect()
}

/// Connects and expects to be turned away, at whatever moment.
pub(crate) async fn refused(address: SocketAddr) {
    let refusal = async {
        match connect(address).await {
            Ok(mut visitor) => drain(&mut visitor).await.is_err(),
            Err(_) => true,
        }
    };
    assert!(within(PROMPT, "the refusal", refusal).await);
}
