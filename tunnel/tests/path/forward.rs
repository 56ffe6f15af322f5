//! Static forwards: both directions, every way to end.

use std::io::ErrorKind;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tunnel::policy::Policy;
use tunnel::target::Target;

use crate::rig::{LONG, PROMPT, Rig, drain, fill, pattern, refused, reset, until, within};
use crate::world::{BlackHole, TcpListener};

#[tokio::test(flavor = "multi_thread")]
async fn bytes_arrive_in_both_directions_at_once() {
    let rig = Rig::start().await;
    let (visitor, target) = rig.pair().await;
    let data = pattern(8 * 1024 * 1024);
    let exchange = |stream: TcpStream, data: Vec<u8>| async move {
        let (mut read, mut write) = stream.into_split();
        let length = data.len();
        let send = async {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut received = Vec::with_capacity(length);
        let (_, result) = tokio::join!(send, read.read_to_end(&mut received));
        result.unwrap();
        received
    };
    let (at_visitor, at_target) = within(LONG, "the exchange", async {
        tokio::join!(
            exchange(visitor, data.clone()),
            exchange(target, data.clone())
        )
    })
    .await;
    assert!(at_visitor == data && at_target == data);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_finishes_first_gets_the_response() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    visitor.write_all(b"question").await.unwrap();
    visitor.shutdown().await.unwrap();
    assert_eq!(
        within(PROMPT, "the end", drain(&mut target)).await.unwrap(),
        8
    );
    target.write_all(b"answer").await.unwrap();
    drop(target);
    assert_eq!(
        within(PROMPT, "the answer", drain(&mut visitor))
            .await
            .unwrap(),
        6
    );
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_finishes_first_gets_the_rest() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    target.write_all(b"hello").await.unwrap();
    target.shutdown().await.unwrap();
    assert_eq!(
        within(PROMPT, "the end", drain(&mut visitor))
            .await
            .unwrap(),
        5
    );
    visitor.write_all(&vec![1; 1_000_000]).await.unwrap();
    drop(visitor);
    assert_eq!(
        within(PROMPT, "the rest", drain(&mut target))
            .await
            .unwrap(),
        1_000_000
    );
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_aborts_a_download_aborts_the_target() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    let endless = tokio::spawn(async move {
        let data = vec![1; 64 * 1024];
        loop {
            if let Err(error) = target.write_all(&data).await {
                return error.kind();
            }
        }
    });
    visitor.read_exact(&mut vec![0; 1_000_000]).await.unwrap();
    reset(visitor);
    let kind = within(PROMPT, "the abort", endless).await.unwrap();
    assert!(
        matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{kind}"
    );
    rig.at_rest().await;
}

/// The way is full in the visitor's direction, so nothing is read from it when it goes away.
#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_aborts_while_the_target_does_not_read_is_noticed() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    fill(&mut visitor).await;
    reset(visitor);
    rig.at_rest().await;
    let error = within(PROMPT, "the abort", drain(&mut target))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_never_reads_and_goes_away_ends_the_target() {
    let rig = Rig::start().await;
    let (visitor, mut target) = rig.pair().await;
    let sent = fill(&mut target).await;
    assert!(sent > 100_000, "{sent}");
    // With unread bytes the kernel makes a reset of it.
    drop(visitor);
    let result = within(PROMPT, "the abort", async {
        loop {
            if let Err(error) = target.write_all(&[1; 1024]).await {
                return error.kind();
            }
        }
    })
    .await;
    assert!(
        matches!(result, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{result}"
    );
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_full_and_the_visitor_aborts() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    fill(&mut visitor).await;
    fill(&mut target).await;
    reset(visitor);
    rig.at_rest().await;
    assert!(
        within(PROMPT, "the abort", drain(&mut target))
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_aborts_aborts_the_visitor() {
    let rig = Rig::start().await;
    let (mut visitor, target) = rig.pair().await;
    reset(target);
    let error = within(PROMPT, "the abort", drain(&mut visitor))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_finishes_and_then_aborts_aborts_the_visitor() {
    let rig = Rig::start().await;
    let (mut visitor, mut target) = rig.pair().await;
    target.shutdown().await.unwrap();
    assert_eq!(
        within(PROMPT, "the end", drain(&mut visitor))
            .await
            .unwrap(),
        0
    );
    reset(target);
    rig.at_rest().await;
    until(
        "the reset",
        || matches!(visitor.try_write(b"x"), Err(error) if error.kind() != ErrorKind::WouldBlock),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_pair_in_which_nothing_moves_is_reset() {
    let linger = Duration::from_millis(200);
    let rig = Rig::start_with(
        |config| config.splice.linger = linger,
        |config| config.splice.linger = linger,
    )
    .await;
    let (mut visitor, mut target) = rig.pair().await;
    visitor.shutdown().await.unwrap();
    assert_eq!(
        within(PROMPT, "the end", drain(&mut target)).await.unwrap(),
        0
    );
    assert!(
        within(PROMPT, "the reset", drain(&mut visitor))
            .await
            .is_err()
    );
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_target_resets_the_visitor() {
    let rig = Rig::start().await;
    let address = rig.target.local_addr().unwrap();
    let Rig {
        server,
        agent,
        target,
    } = rig;
    drop(target);
    refused(server.forwards()[0]).await;
    let text = server.counters().text().unwrap();
    assert!(
        text.contains("watertight_open_failures_total{reason=\"refused\"} 1"),
        "{text}"
    );
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
async fn a_denied_target_is_not_dialed() {
    let rig = Rig::start_with(|_| {}, |config| config.policy = Policy::default()).await;
    refused(rig.server.forwards()[0]).await;
    let text = rig.server.counters().text().unwrap();
    assert!(
        text.contains("watertight_open_failures_total{reason=\"denied\"} 1"),
        "{text}"
    );
    let dialed = tokio::time::timeout(Duration::from_millis(50), rig.target.accept()).await;
    assert!(dialed.is_err());
    rig.at_rest().await;
}

/// The dial hangs: the listener answers no SYN.
#[tokio::test(flavor = "multi_thread")]
async fn a_dial_ends_with_the_visitor_that_asked_for_it() {
    let hole = BlackHole::open().await;
    let target = Target::tcp(&hole.address.to_string(), None).unwrap();
    let rig = Rig::start_with(
        |config| config.forwards[0].target = target,
        |config| config.policy = Policy::new(vec![hole.address.to_string().parse().unwrap()]),
    )
    .await;
    let visitors = join_all((0..50).map(|_| rig.visitor())).await;
    until("the dials", || hole.dials() == 50).await;
    visitors.into_iter().for_each(reset);
    until("the end of the dials", || hole.dials() == 0).await;
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_short_connections_leave_nothing() {
    let rig = Rig::start().await;
    let echo = async {
        loop {
            let (mut target, _) = rig.target.accept().await.unwrap();
            tokio::spawn(async move {
                let mut data = [0; 100];
                target.read_exact(&mut data).await.unwrap();
                target.write_all(&data).await.unwrap();
            });
        }
    };
    let visitors = async {
        for _ in 0..40 {
            let batch = (0..25).map(|_| async {
                let mut visitor = rig.visitor().await;
                visitor.write_all(&[1; 100]).await.unwrap();
                assert_eq!(drain(&mut visitor).await.unwrap(), 100);
            });
            join_all(batch).await;
        }
    };
    within(LONG, "the visitors", async {
        tokio::select! {
            () = echo => {}
            () = visitors => {}
        }
    })
    .await;
    rig.at_rest().await;
    let text = rig.server.counters().text().unwrap();
    assert_eq!(crate::rig::sum(&text, "remove_connections"), 1000);
}

/// A target that answers without reading the question resets the connection behind its answer; a
/// visitor without a tunnel would have got the answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_a_reset_arrives() {
    let rig = Rig::start().await;
    for _ in 0..20 {
        let (mut visitor, mut target) = rig.pair().await;
        visitor.write_all(&[1; 10_000]).await.unwrap();
        assert_eq!(target.peek(&mut [0]).await.unwrap(), 1);
        target.write_all(&[2; 50_000]).await.unwrap();
        drop(target);
        let mut answer = vec![0; 50_000];
        within(PROMPT, "the answer", visitor.read_exact(&mut answer))
            .await
            .unwrap();
        assert!(
            within(PROMPT, "the reset", drain(&mut visitor))
                .await
                .is_err()
        );
        drop(visitor);
        rig.at_rest().await;
    }
}
