//! One request of the HTTP front and its response: time limits, early and cut responses, and what
//! of a head passes.

use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tunnel::server;

use crate::front::{Client, OK, answer, path, request};
use crate::rig::{LONG, PROMPT, Rig, drain, reset, until, with_http, within};

const SHORT: Duration = Duration::from_millis(400);

async fn limited(limit: Option<Duration>) -> Rig {
    let change = |config: &mut server::Config| {
        with_http(config);
        config.response_timeout = limit;
    };
    Rig::start_with(change, |_| {}).await
}

/// Reads lines until one contains `end`.
async fn lines(io: &mut BufReader<TcpStream>, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let read = within(LONG, "a line", io.read_line(&mut text))
            .await
            .unwrap();
        assert!(read > 0, "no {end:?} but {text:?}");
    }
    text
}

/// Begins an upload of `length` bytes.
async fn begin_upload(client: &mut Client, path: &str, length: usize) {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    client.send(&head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_lives_as_long_as_it_moves_and_the_response_has_its_own_time() {
    let rig = limited(Some(SHORT)).await;
    let mut client = Client::connect(&rig).await;
    begin_upload(&mut client, &path(&rig, ""), 8).await;
    let (_, mut io) = request(&rig).await;
    let began = Instant::now();
    for _ in 0..8 {
        tokio::time::sleep(SHORT / 3).await;
        client.send("x").await;
    }
    assert!(began.elapsed() > SHORT * 2);
    let mut body = [0; 8];
    let read = io.read_exact(&mut body);
    within(PROMPT, "the upload", read).await.unwrap();
    // The clock of the response has started now.
    tokio::time::sleep(SHORT / 2).await;
    io.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_stands_still_ends_and_is_told_whose_fault_it_is() {
    let rig = limited(Some(SHORT)).await;
    let mut client = Client::connect(&rig).await;
    begin_upload(&mut client, &path(&rig, ""), 8).await;
    let (_, io) = request(&rig).await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 408, "{}", reply.head);
    drop((client, io));
    // The target takes no more.
    let mut client = Client::connect(&rig).await;
    begin_upload(&mut client, &path(&rig, ""), 1_000_000_000).await;
    let (_, io) = request(&rig).await;
    crate::rig::fill(client.io.get_mut()).await;
    assert_eq!(client.reply().await.status, 504);
    drop((client, io));
    // It took everything, and says nothing.
    let mut client = Client::connect(&rig).await;
    begin_upload(&mut client, &path(&rig, ""), 1).await;
    let (_, io) = request(&rig).await;
    client.send("x").await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 504);
    // A request that had ended leaves the connection usable.
    let path = path(&rig, "");
    let (reply, _) = tokio::join!(client.get(&path), answer(&rig, OK));
    assert_eq!(reply.status, 200);
    drop((client, io));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_limit_a_target_may_take_its_time() {
    let rig = limited(None).await;
    let mut client = Client::connect(&rig).await;
    begin_upload(&mut client, &path(&rig, ""), 1).await;
    let (_, mut io) = request(&rig).await;
    tokio::time::sleep(SHORT).await;
    client.send("x").await;
    tokio::time::sleep(SHORT).await;
    io.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_has_a_limit_of_its_own() {
    let rig = Rig::start_with(
        |config| {
            with_http(config);
            config.header_timeout = Some(SHORT);
            config.keep_alive_timeout = Some(SHORT * 4);
        },
        |_| {},
    )
    .await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    for _ in 0..2 {
        let (reply, _) = tokio::join!(client.get(&path), answer(&rig, OK));
        assert_eq!(reply.status, 200);
        tokio::time::sleep(SHORT * 2).await;
    }
    // A body may take longer than a head.
    begin_upload(&mut client, &path, 1).await;
    let (_, mut io) = request(&rig).await;
    tokio::time::sleep(SHORT * 2).await;
    client.send("x").await;
    tokio::time::sleep(SHORT * 2).await;
    io.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(client.reply().await.status, 200);
    let idle = Instant::now();
    let end = within(PROMPT, "the end", drain(client.io.get_mut())).await;
    assert_eq!(end.unwrap(), 0);
    assert!(idle.elapsed() > SHORT * 3);
    let late = "watertight_limit_rejections_total{limit=\"header\"} ";
    let counted = |count: u32| {
        let text = rig.server.counters().text().unwrap();
        text.contains(&format!("{late}{count}\n"))
    };
    assert!(counted(0));
    // A head that is begun must be finished.
    let mut client = Client::connect(&rig).await;
    let (reply, _) = tokio::join!(client.get(&path), answer(&rig, OK));
    assert_eq!(reply.status, 200);
    client.send("GET / HT").await;
    let begun = Instant::now();
    let _ = within(PROMPT, "the end", drain(client.io.get_mut())).await;
    assert!(begun.elapsed() < SHORT * 3);
    until("the count", || counted(1)).await;
}

/// Most of the upload is on its way when the target has said no.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_response_reaches_a_visitor_that_uploads() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    for hangs_up in [false, true] {
        for status in [401, 413] {
            let client = Client::connect(&rig).await;
            let (mut read, mut write) = client.io.into_inner().into_split();
            let path = path(&rig, "");
            let upload = tokio::spawn(async move {
                let length = 64 * 1024 * 1024;
                let head = format!(
                    "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
                );
                let _ = write.write_all(head.as_bytes()).await;
                let piece = vec![7; 64 * 1024];
                for _ in 0..length / piece.len() {
                    if write.write_all(&piece).await.is_err() {
                        return;
                    }
                }
            });
            let (_, mut io) = request(&rig).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            let response = format!("HTTP/1.1 {status} No\r\nContent-Length: 4\r\n\r\nnope");
            io.write_all(response.as_bytes()).await.unwrap();
            let kept = (!hangs_up).then_some(io);
            let mut text = Vec::new();
            let _ = within(LONG, "the response", read.read_to_end(&mut text)).await;
            let text = String::from_utf8(text).unwrap();
            assert!(
                text.starts_with(&format!("HTTP/1.1 {status} ")) && text.ends_with("\r\n\r\nnope"),
                "{hangs_up} {text:?}"
            );
            let head = text.to_ascii_lowercase();
            assert!(head.contains("connection: close\r\n"), "{text}");
            drop(kept);
            within(LONG, "the upload's end", upload).await.unwrap();
        }
    }
    rig.at_rest().await;
}

/// Our own refusals as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_visitor_that_uploads() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let target = rig.target.local_addr().unwrap();
    let client = Client::connect(&rig).await;
    let (mut read, mut write) = client.io.into_inner().into_split();
    let upload = tokio::spawn(async move {
        let head = format!(
            "POST /client/nobody/http/{target}/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
        );
        let _ = write.write_all(head.as_bytes()).await;
        let piece = vec![7; 64 * 1024];
        while write.write_all(&piece).await.is_ok() {}
    });
    let mut text = String::new();
    let _ = within(LONG, "the response", read.read_to_string(&mut text)).await;
    assert!(text.starts_with("HTTP/1.1 503 "), "{text:?}");
    within(LONG, "the upload's end", upload).await.unwrap();
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_of_a_response_that_is_cut_reaches_the_visitor() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    for _ in 0..20 {
        let mut client = Client::connect(&rig).await;
        let path = path(&rig, "");
        client
            .send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await;
        let (_, mut io) = request(&rig).await;
        let response = "HTTP/1.1 200 OK\r\nX-Here: 1\r\nContent-Length: 1000\r\n\r\nhalf";
        io.write_all(response.as_bytes()).await.unwrap();
        drop(io);
        assert!(client.head().await.contains("x-here: 1"));
        let mut body = vec![0; 1000];
        let cut = within(PROMPT, "the cut", client.io.read_exact(&mut body)).await;
        assert!(cut.is_err());
    }
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_100_continue_is_answered_by_the_target() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let path = path(&rig, "");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    );
    // It says yes.
    let mut client = Client::connect(&rig).await;
    client.send(&head).await;
    let (target_head, mut io) = request(&rig).await;
    let target_head = target_head.to_ascii_lowercase();
    assert!(
        target_head.contains("expect: 100-continue"),
        "{target_head}"
    );
    let mut byte = [0];
    let early = tokio::time::timeout(SHORT, client.io.read_exact(&mut byte)).await;
    assert!(early.is_err(), "nobody else says it");
    io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        .await
        .unwrap();
    assert!(client.head().await.starts_with("http/1.1 100 "));
    client.send("body").await;
    within(PROMPT, "the body", io.read_exact(&mut [0; 4]))
        .await
        .unwrap();
    io.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(client.reply().await.status, 200);
    drop((client, io));
    // It says no.
    let mut client = Client::connect(&rig).await;
    client.send(&head).await;
    let (_, mut io) = request(&rig).await;
    io.write_all(b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno")
        .await
        .unwrap();
    let reply = client.reply().await;
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (417, b"no".as_slice())
    );
    drop((client, io));
    // It knows nothing of it, and the visitor waits.
    let mut client = Client::connect(&rig).await;
    client.send(&head).await;
    let (_, mut io) = request(&rig).await;
    assert!(client.head().await.starts_with("http/1.1 100 "));
    client.send("body").await;
    within(PROMPT, "the body", io.read_exact(&mut [0; 4]))
        .await
        .unwrap();
    io.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(client.reply().await.status, 200);
    drop((client, io));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_both_ways() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    client
        .send(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nTrailer: X-Sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n"
        ))
        .await;
    let (head, mut io) = request(&rig).await;
    let head = head.to_ascii_lowercase();
    assert!(
        head.contains("te: trailers\r\n") && head.contains("connection: close, te\r\n"),
        "{head}"
    );
    let body = lines(&mut io, "7\r\n").await;
    assert!(body.to_ascii_lowercase().contains("x-sum: 7"), "{body}");
    io.write_all(
        b"HTTP/1.1 200 OK\r\nTrailer: X-Status\r\nTransfer-Encoding: chunked\r\n\r\n\
          2\r\nok\r\n0\r\nX-Status: 0\r\n\r\n",
    )
    .await
    .unwrap();
    assert!(client.head().await.contains("trailer: x-status"));
    let body = lines(&mut client.io, "0\r\nx-status: 0\r\n").await;
    assert!(body.contains("ok"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn header_lines_are_bounded_by_number_and_bytes() {
    let rig = Rig::start_with(
        |config| {
            with_http(config);
            config.header_lines_max = 200;
            config.head_max = 16 * 1024;
        },
        |_| {},
    )
    .await;
    let path = path(&rig, "");
    let many = |count: usize| -> String { (0..count).map(|at| format!("X-{at}: v\r\n")).collect() };
    let get = |more: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    let mut client = Client::connect(&rig).await;
    client.send(&get(&many(190))).await;
    let response = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n", many(190));
    let (reply, head) = tokio::join!(client.reply(), answer(&rig, &response));
    assert_eq!(reply.status, 200);
    assert!(head.contains("189: v") && reply.head.contains("x-189: v"));
    // A target's head that is too long is its fault.
    for response in [
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n", many(201)),
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(20_000)),
    ] {
        client.send(&get("")).await;
        let (reply, _) = tokio::join!(client.reply(), answer(&rig, &response));
        assert_eq!(reply.status, 502);
    }
    for more in [many(201), format!("X: {}\r\n", "x".repeat(20_000))] {
        let mut client = Client::connect(&rig).await;
        client.send(&get(&more)).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 431);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn header_names_keep_their_case() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let mut client = Client::connect(&rig).await;
    let path = path(&rig, "");
    client
        .send(&format!(
            "GET {path} HTTP/1.1\r\nHOST: localhost\r\nX-OAuth-iD: 1\r\nx-lower: 2\r\n\r\n"
        ))
        .await;
    let (head, mut io) = request(&rig).await;
    assert!(
        head.contains("\r\nX-OAuth-iD: 1\r\n") && head.contains("\r\nx-lower: 2\r\n"),
        "{head}"
    );
    io.write_all(b"HTTP/1.1 204 Nothing\r\neTaG: \"1\"\r\nSOAPAction: 2\r\n\r\n")
        .await
        .unwrap();
    let text = lines(&mut client.io, "\r\n\r\n").await;
    assert!(
        text.contains("\r\neTaG: \"1\"\r\n") && text.contains("\r\nSOAPAction: 2\r\n"),
        "{text}"
    );
}

/// What servers of old send is taken from targets, and never from visitors.
#[tokio::test(flavor = "multi_thread")]
async fn old_heads_are_taken_from_targets_only() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let path = path(&rig, "");
    for line in [
        "X-Space : 1",
        "X-Folded: 1,\r\n 2",
        "X-Odd: \u{e9}",
        "stray",
    ] {
        let mut client = Client::connect(&rig).await;
        let response =
            format!("HTTP/1.1 200 OK\r\n{line}\r\nX-After: 3\r\nContent-Length: 2\r\n\r\nok");
        let get = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.send(&get).await;
        let (_, mut io) = request(&rig).await;
        io.write_all(response.as_bytes()).await.unwrap();
        let reply = client.reply().await;
        assert_eq!(reply.status, 200, "{line}");
        assert!(
            reply.head.contains("x-after: 3\r\n"),
            "{line}: {}",
            reply.head
        );
    }
    for line in ["X-Space : 1", "X-Folded: 1,\r\n 2", "stray"] {
        let mut client = Client::connect(&rig).await;
        client
            .send(&format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n"
            ))
            .await;
        assert_eq!(client.reply().await.status, 400, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answered_is_said_in_the_head_and_in_the_body() {
    let rig = Rig::start_with(with_http, |_| {}).await;
    let target = rig.target.local_addr().unwrap();
    let mut client = Client::connect(&rig).await;
    // The target's own error.
    let path = path(&rig, "");
    let text = "HTTP/1.1 503 Sorry\r\nServer: theirs\r\nContent-Length: 4\r\n\r\nfull";
    let (reply, head) = tokio::join!(client.get(&path), answer(&rig, text));
    assert_eq!(reply.body, b"full");
    assert!(
        reply.head.contains("server: theirs\r\n") && reply.head.contains("via: 1.1 watertight\r\n"),
        "{}",
        reply.head
    );
    assert!(
        head.to_ascii_lowercase()
            .contains("via: 1.1 watertight\r\n")
    );
    // Ours.
    let nobody = format!("/client/nobody/http/{target}/");
    for request in [
        format!("GET {nobody} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        "GET / HTTP/1.1\r\nHost: localhost\r\nX y: 1\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(70_000)),
        "what is this\r\n\r\n".to_owned(),
    ] {
        let mut client = Client::connect(&rig).await;
        client.send(&request).await;
        let reply = client.reply().await;
        let body = String::from_utf8(reply.body).unwrap();
        assert!((400..600).contains(&reply.status));
        assert!(
            reply.head.contains("server: watertight\r\n") && !reply.head.contains("via: "),
            "{}",
            reply.head
        );
        assert!(
            body.starts_with("watertight: ") && body.len() > 20,
            "{body:?}"
        );
    }
    reset(client.io.into_inner());
}
