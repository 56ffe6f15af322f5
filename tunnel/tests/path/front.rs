//! The HTTP front, spoken to byte by byte.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::rig::{LONG, PROMPT, Rig, drain, reset, until, with_http, within};
use crate::world::{TcpListener, connect};

/// A visitor's connection to the front.
pub(crate) struct Client {
    pub(crate) io: BufReader<TcpStream>,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(rig: &Rig) -> Self {
        let stream = connect(rig.server.front()).await.unwrap();
        Self {
            io: BufReader::new(stream),
        }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.unwrap();
    }

    pub(crate) async fn get(&mut self, path: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await;
        self.reply().await
    }

    pub(crate) async fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = within(LONG, "the head", self.io.read_line(&mut head))
                .await
                .unwrap();
            assert!(read > 0, "no head but {head:?}");
        }
        head.to_ascii_lowercase()
    }

    pub(crate) async fn reply(&mut self) -> Reply {
        let head = self.head().await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        within(LONG, "the body", self.io.read_exact(&mut body))
            .await
            .unwrap();
        Reply { status, head, body }
    }
}

/// Takes the next request at the target: its head, and the connection behind it.
pub(crate) async fn request(rig: &Rig) -> (String, BufReader<TcpStream>) {
    let (stream, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
    let mut io = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(
            within(LONG, "the request", io.read_line(&mut head))
                .await
                .unwrap()
                > 0
        );
    }
    (head, io)
}

pub(crate) async fn answer(rig: &Rig, text: &str) -> String {
    let (head, mut io) = request(rig).await;
    io.write_all(text.as_bytes()).await.unwrap();
    head
}

pub(crate) fn path(rig: &Rig, rest: &str) -> String {
    format!(
        "/client/web/http/{}/{rest}",
        rig.target.local_addr().unwrap()
    )
}

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_on_one_connection() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    for number in 0..50 {
        let path = path(&rig, &format!("a/{number}?q=1"));
        let (reply, head) = tokio::join!(client.get(&path), answer(&rig, OK));
        assert_eq!(
            (reply.status, reply.body.as_slice()),
            (200, b"ok".as_slice())
        );
        assert!(
            head.starts_with(&format!("GET /a/{number}?q=1 HTTP/1.1\r\n")),
            "{head}"
        );
        let host = format!("host: {}", rig.target.local_addr().unwrap());
        assert!(head.to_ascii_lowercase().contains(&host), "{head}");
    }
    drop(client);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_one_hop_stays_on_it() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    client
        .send(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: deflate\r\nX-End: 2\r\n\r\n"
        ))
        .await;
    let text = "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nX-Far: 3\r\nContent-Length: 0\r\n\r\n";
    let (reply, head) = tokio::join!(client.reply(), answer(&rig, text));
    let head = head.to_ascii_lowercase();
    assert!(
        head.contains("x-end: 2") && !head.contains("x-hop") && !head.contains("deflate"),
        "{head}"
    );
    assert!(
        reply.head.contains("x-far: 3") && !reply.head.contains("timeout"),
        "{}",
        reply.head
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_streamed_both_ways() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    client
        .send(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
        ))
        .await;
    let (_, mut io) = request(&rig).await;
    let mut line = String::new();
    while !line.contains("first") {
        within(PROMPT, "the first piece", io.read_line(&mut line))
            .await
            .unwrap();
    }
    io.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n")
        .await
        .unwrap();
    client.head().await;
    let mut got = String::new();
    while !got.contains("early") {
        within(PROMPT, "the early piece", client.io.read_line(&mut got))
            .await
            .unwrap();
    }
    client.send("0\r\n\r\n").await;
    io.write_all(b"0\r\n\r\n").await.unwrap();
    let mut rest = String::new();
    while !rest.contains("0\r\n") {
        within(PROMPT, "the end", client.io.read_line(&mut rest))
            .await
            .unwrap();
    }
    drop((client, io));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_said_in_one_line() {
    let rig = Rig::start_with(
        |config| {
            with_http(config);
            config.response_timeout = Some(Duration::from_millis(100));
        },
        |_| {},
    )
    .await;
    let mut client = Client::connect(&rig).await;
    let target = rig.target.local_addr().unwrap();
    for (path, status, word) in [
        ("/".to_owned(), 404, "/client/"),
        ("/client/web".to_owned(), 404, "/client/"),
        (format!("/client/web/https/{target}/"), 501, "https"),
        (
            format!("/client/nobody/http/{target}/"),
            503,
            "not connected",
        ),
        (
            "/client/web/http/127.0.0.2:1/".to_owned(),
            502,
            "does not allow",
        ),
        (format!("/client/web/http/{target}/"), 504, "in time"),
    ] {
        let reply = client.get(&path).await;
        let body = String::from_utf8(reply.body).unwrap();
        assert_eq!(reply.status, status, "{path}: {body}");
        assert!(
            body.contains(word) && body.lines().count() == 1,
            "{path}: {body}"
        );
    }
    drop(client);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_refuses_or_hangs_up_is_a_bad_gateway() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    let hang_up = async { drop(request(&rig).await) };
    let (reply, ()) = tokio::join!(client.get(&path), hang_up);
    assert_eq!(reply.status, 502);
    let abort = async { reset(request(&rig).await.1.into_inner()) };
    let (reply, ()) = tokio::join!(client.get(&path), abort);
    assert_eq!(reply.status, 502);
    let Rig {
        server,
        agent,
        target,
    } = rig;
    let address = target.local_addr().unwrap();
    drop(target);
    assert_eq!(client.get(&path).await.status, 502);
    drop(client);
    let target = TcpListener::bind(address).await.unwrap();
    Rig {
        server,
        agent,
        target,
    }
    .at_rest()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_finishes_first_gets_the_response() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    client
        .send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        .await;
    client.io.get_mut().shutdown().await.unwrap();
    let (_, mut io) = request(&rig).await;
    let body = "x".repeat(1_000_000);
    io.write_all(
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    )
    .await
    .unwrap();
    assert_eq!(client.reply().await.body.len(), body.len());
    assert_eq!(
        within(PROMPT, "the end", drain(client.io.get_mut()))
            .await
            .unwrap(),
        0
    );
    drop(io);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_leaves_before_the_response_ends_the_target() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    for abort in [true, false] {
        let mut client = Client::connect(&rig).await;
        let path = path(&rig, "");
        client
            .send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await;
        let (_, mut io) = request(&rig).await;
        if abort {
            reset(client.io.into_inner());
        } else {
            drop(client);
        }
        let _ = within(PROMPT, "the end", drain(io.get_mut())).await;
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_does_not_read_and_leaves_ends_the_target() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    client
        .send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        .await;
    let (_, mut io) = request(&rig).await;
    io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        .await
        .unwrap();
    client.head().await;
    crate::rig::fill(io.get_mut()).await;
    drop(client);
    within(PROMPT, "the abort", async {
        while io.write_all(&[1; 1024]).await.is_ok() {}
    })
    .await;
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_uploads_to_nobody_and_aborts_is_noticed() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    client
        .send(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        ))
        .await;
    let (_, mut io) = request(&rig).await;
    crate::rig::fill(client.io.get_mut()).await;
    reset(client.io.into_inner());
    rig.at_rest().await;
    let _ = within(PROMPT, "the end", drain(io.get_mut())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_dies_in_its_response_cuts_the_visitor_off() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    client
        .send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        .await;
    let (_, mut io) = request(&rig).await;
    io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        .await
        .unwrap();
    client.head().await;
    reset(io.into_inner());
    let mut body = vec![0; 1000];
    assert!(
        within(PROMPT, "the cut", client.io.read_exact(&mut body))
            .await
            .is_err()
    );
    rig.at_rest().await;
}

/// hyper waits for such a visitor and would not see that there is nothing to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_does_not_read_is_cut_off_when_its_stream_is_over() {
    for agent_dies in [true, false] {
        let rig = Rig::start_with(with_http, |_| {}).await;
        let mut client = Client::connect(&rig).await;
        let path = path(&rig, "");
        client
            .send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await;
        let (_, mut io) = request(&rig).await;
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            .await
            .unwrap();
        client.head().await;
        crate::rig::fill(io.get_mut()).await;
        let Rig { server, agent, .. } = rig;
        if agent_dies {
            drop(agent);
            until("the end of everything", || server.tasks() == 0).await;
        } else {
            reset(io.into_inner());
            until("the end of the stream", || server.tasks() <= 2).await;
        }
        assert!(
            within(PROMPT, "the reset", drain(client.io.get_mut()))
                .await
                .is_err()
        );
    }
}
