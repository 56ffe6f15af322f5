//! Limits refuse or throttle, and each refusal is counted.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::agent::Agent;
use tunnel::metrics::Metrics;
use tunnel::server;
use tunnel::server::Limits;
use tunnel::server::auth::handshake::Remotedialer;
use tunnel::wire::Dialect;

use crate::rig::{
    LONG, PROMPT, Rig, agent_config, drain, pattern, refused, reset, until, with_http, within,
};
use crate::world::connect;

fn value(counters: &Metrics, name: &str) -> f64 {
    let text = counters.text().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |count| count.trim().parse().unwrap())
}

fn rejections(counters: &Metrics, limit: &str) -> f64 {
    let name = format!("watertight_limit_rejections_total{{limit=\"{limit}\"}}");
    value(counters, &name)
}

#[tokio::test(flavor = "multi_thread")]
async fn opens_beyond_the_rate_are_refused_and_counted() {
    for dialect in [Dialect::Native, Dialect::Remotedialer] {
        let rig = Rig::start_with(
            |server| {
                with_http(server);
                server.remotedialer = Some(Remotedialer::default());
                server.limits = Limits {
                    opens_per_second: NonZeroU32::new(1),
                    burst: 5,
                    ..Limits::default()
                };
            },
            |agent| agent.dialect = dialect,
        )
        .await;
        let began = Instant::now();
        let serving = async {
            loop {
                let (mut target, _) = rig.target.accept().await.unwrap();
                target.write_all(b"!").await.unwrap();
            }
        };
        let visiting = async {
            let mut served = 0;
            for _ in 0..40 {
                // It may be turned away before it knows that it is connected.
                let Ok(mut visitor) = connect(rig.server.forwards()[0]).await else {
                    continue;
                };
                let read = within(PROMPT, "the answer", visitor.read_u8()).await;
                served += u32::from(read.is_ok());
            }
            served
        };
        let served = tokio::select! {
            served = visiting => served,
            () = serving => 0,
        };
        let most = 5.0 + began.elapsed().as_secs_f64();
        assert!(served >= 5 && f64::from(served) <= most, "{served}");
        let refused = rejections(rig.server.counters(), "opens_per_second");
        assert!((refused - f64::from(40 - served)).abs() < 0.5, "{refused}");
        // The HTTP front says so.
        let mut told = false;
        for _ in 0..20 {
            let mut visitor = connect(rig.server.front()).await.unwrap();
            let target = rig.target.local_addr().unwrap();
            let request = format!(
                "GET /client/web/http/{target}/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            );
            visitor.write_all(request.as_bytes()).await.unwrap();
            let mut head = [0; 12];
            let answered =
                tokio::time::timeout(Duration::from_millis(100), visitor.read_exact(&mut head))
                    .await;
            told |= answered.is_ok() && head == *b"HTTP/1.1 503";
        }
        assert!(told);
    }
}

async fn slow(rate: u64) -> Rig {
    let limits = Limits {
        bytes_per_second: NonZeroU64::new(rate),
        ..Limits::default()
    };
    let set = |server: &mut server::Config| {
        with_http(server);
        server.limits = limits;
    };
    Rig::start_with(set, |_| {}).await
}

/// Sends `data` and returns how long it took to arrive whole.
async fn carry(from: &mut TcpStream, to: &mut TcpStream, data: &[u8]) -> Duration {
    let began = Instant::now();
    let mut received = vec![0; data.len()];
    let (sent, read) = within(LONG, "the bytes", async {
        tokio::join!(from.write_all(data), to.read_exact(&mut received))
    })
    .await;
    sent.unwrap();
    read.unwrap();
    assert!(received == data);
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_beyond_the_rate_wait_in_both_directions_and_none_is_lost() {
    const KIB: usize = 1024;
    let rig = slow(512 * 1024).await;
    let data = pattern(1024 * KIB);
    let (mut visitor, mut target) = rig.pair().await;
    // A second's worth is there at once; the last pieces may be on the way when the count is
    // exceeded.
    let there = carry(&mut visitor, &mut target, &data).await;
    let back = carry(&mut target, &mut visitor, &data).await;
    assert!(there > Duration::from_millis(700), "{there:?}");
    assert!(
        there + back > Duration::from_millis(2600),
        "{there:?} {back:?}"
    );
    assert!(value(rig.server.counters(), "watertight_throttled_seconds_total") > 1.0);
    drop((visitor, target));
    rig.at_rest().await;
    // The HTTP front, whose streams take another way.
    let mut visitor = connect(rig.server.front()).await.unwrap();
    let at = rig.target.local_addr().unwrap();
    let request = format!(
        "GET /client/web/http/{at}/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    visitor.write_all(request.as_bytes()).await.unwrap();
    let (mut target, _) = within(LONG, "the dial", rig.target.accept()).await.unwrap();
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let read = within(LONG, "the request", target.read_buf(&mut asked)).await;
        assert!(read.unwrap() > 0);
    }
    let began = Instant::now();
    let answering = async {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", data.len());
        target.write_all(head.as_bytes()).await.unwrap();
        target.write_all(&data).await.unwrap();
    };
    let mut answer = Vec::new();
    let (_, read) = within(LONG, "the answer", async {
        tokio::join!(answering, visitor.read_to_end(&mut answer))
    })
    .await;
    read.unwrap();
    let head = String::from_utf8_lossy(&answer[..answer.len().min(300)]);
    assert!(answer.ends_with(&data), "{} {head}", answer.len());
    assert!(began.elapsed() > Duration::from_millis(700));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_slowed_down_ends_at_once() {
    let rig = slow(1024).await;
    for visitor_leaves in [true, false] {
        let (mut visitor, mut target) = rig.pair().await;
        // Far more than a minute's worth.
        visitor.write_all(&[0; 200_000]).await.unwrap();
        until("the throttle", || {
            value(rig.server.counters(), "watertight_throttled_seconds_total") > 1.0
        })
        .await;
        let (leaves, stays) = if visitor_leaves {
            (visitor, &mut target)
        } else {
            (target, &mut visitor)
        };
        reset(leaves);
        let _ = within(PROMPT, "the end", drain(stays)).await;
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_streams_and_messages_beyond_their_bounds_are_counted() {
    let rig = Rig::start_with(
        |server| {
            server.sessions_max = 1;
            server.mux.max_streams = 1;
            server.link.message_max = 8 * 1024;
        },
        |_| {},
    )
    .await;
    let counters = rig.server.counters();
    let (mut visitor, mut target) = rig.pair().await;
    refused(rig.server.forwards()[0]).await;
    assert!(rejections(counters, "streams") > 0.5);
    let mut config = agent_config(&rig.server, &[]);
    config.name = "other".to_owned();
    let other = Agent::start(config, None);
    until("the refusal", || rejections(counters, "sessions") > 0.5).await;
    other.drain(Duration::ZERO).await;
    // The agent's message with it is longer than the server takes.
    let _ = target.write_all(&[0; 200_000]).await;
    within(PROMPT, "the reset", drain(&mut visitor))
        .await
        .unwrap_err();
    until("the count", || rejections(counters, "frame_size") > 0.5).await;
}
