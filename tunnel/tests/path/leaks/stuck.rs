//! Streams that cannot move: their tasks must end with the stream, and must not block others.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::rigs;
use crate::rig::{
    LONG, PROMPT, Rig, broken, drain, fill, pattern, reset, round_trip, until, within,
};
use crate::world::{Pace, Relay};

/// Writes until the other end is gone.
async fn pour(mut stream: TcpStream) {
    let data = vec![1; 64 * 1024];
    while stream.write_all(&data).await.is_ok() {}
}

async fn echo(target: TcpStream) {
    let (mut read, mut write) = target.into_split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// Several times, since where the writers are when the way is full differs each time.
#[tokio::test(flavor = "multi_thread")]
async fn stuck_target_write_ends_with_its_stream() {
    for rig in rigs().await {
        for _ in 0..5 {
            let (mut visitor, mut target) = rig.pair().await;
            fill(&mut visitor).await;
            reset(visitor);
            rig.at_rest().await;
            let end = within(PROMPT, "the target's end", drain(&mut target)).await;
            assert!(end.is_err(), "{end:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stuck_target_write_ends_with_its_session() {
    for rig in rigs().await {
        let (mut visitor, mut target) = rig.pair().await;
        fill(&mut visitor).await;
        within(PROMPT, "the drain", rig.server.drain(Duration::ZERO)).await;
        within(PROMPT, "the loss", rig.agent.disconnected()).await;
        broken(&mut visitor, &mut target).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_writers_end_with_their_streams() {
    for rig in rigs().await {
        let mut visitors = Vec::new();
        let mut targets = Vec::new();
        for _ in 0..60 {
            let (visitor, target) = rig.pair().await;
            visitors.push(visitor);
            targets.push(tokio::spawn(pour(target)));
        }
        // Every way is full.
        tokio::time::sleep(Duration::from_millis(500)).await;
        visitors.into_iter().for_each(reset);
        for target in targets {
            within(PROMPT, "the target's end", target).await.unwrap();
        }
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_writers_end_with_their_session() {
    for round in 0..10 {
        for rig in rigs().await {
            let mut visitors = Vec::new();
            let mut targets = Vec::new();
            for _ in 0..4 {
                let (visitor, target) = rig.pair().await;
                visitors.push(visitor);
                targets.push(tokio::spawn(pour(target)));
            }
            tokio::time::sleep(Duration::from_millis(10 * round)).await;
            let Rig { server, agent, .. } = rig;
            if round % 2 == 0 {
                drop(agent);
                until("the end of the session", || server.tasks() == 0).await;
            } else {
                within(PROMPT, "the drain", server.drain(Duration::ZERO)).await;
                within(PROMPT, "the drain", agent.drain(Duration::ZERO)).await;
            }
            for target in targets {
                within(PROMPT, "the target's end", target).await.unwrap();
            }
            for mut visitor in visitors {
                let end = within(PROMPT, "the visitor's end", drain(&mut visitor)).await;
                assert!(end.is_err(), "{end:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_larger_than_every_buffer_completes() {
    for rig in rigs().await {
        let (mut visitor, target) = rig.pair().await;
        let echo = tokio::spawn(echo(target));
        let sent = pattern(24 * 1024 * 1024);
        let mut received = vec![0; sent.len()];
        let (mut read, mut write) = visitor.split();
        let read = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            read.read_exact(&mut received).await.unwrap();
        };
        let both = async { tokio::join!(write.write_all(&sent), read) };
        within(LONG, "the echo", both).await.0.unwrap();
        assert!(received == sent);
        drop(visitor);
        within(PROMPT, "the end", echo).await.unwrap();
        rig.at_rest().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_that_leaves_an_echo_full_both_ways_is_noticed() {
    for rig in rigs().await {
        let (mut visitor, target) = rig.pair().await;
        let echo = tokio::spawn(echo(target));
        fill(&mut visitor).await;
        drop(visitor);
        within(PROMPT, "the target's end", echo).await.unwrap();
        rig.at_rest().await;
    }
}

/// Every end writes and reads at once on buffers smaller than what is under way, so none may wait
/// for room before it reads.
#[tokio::test(flavor = "multi_thread")]
async fn two_ends_that_fill_each_other_go_on_reading() {
    let mut relay = None;
    let rig = Rig::start_with(|_| {}, |config| relay = Some(Relay::before(config))).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        let (visitor, target) = rig.pair().await;
        tokio::spawn(echo(target));
        streams.push(visitor);
    }
    let sent = pattern(512 * 1024);
    let echoes = streams.into_iter().map(|visitor| async {
        let (mut read, mut write) = visitor.into_split();
        let mut received = vec![0; sent.len()];
        let write_all = async {
            for piece in sent.chunks(1024) {
                write.write_all(piece).await.unwrap();
            }
        };
        let ((), read) = tokio::join!(write_all, read.read_exact(&mut received));
        read.unwrap();
        assert!(received == sent);
    });
    within(LONG, "the echoes", join_all(echoes)).await;
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_that_do_not_read_hold_up_nobody() {
    let silence = Duration::from_millis(1500);
    let brisk = |config: &mut tunnel::mux::native::Config| {
        config.ping_interval = Duration::from_millis(300);
        config.silence = silence;
    };
    let rig = Rig::start_with(
        |server| brisk(&mut server.mux),
        |agent| brisk(&mut agent.mux),
    )
    .await;
    let mut stalled = Vec::new();
    for _ in 0..50 {
        let (visitor, target) = rig.pair().await;
        stalled.push((visitor, tokio::spawn(pour(target))));
    }
    let (mut visitor, mut target) = rig.pair().await;
    let end = Instant::now() + silence + Duration::from_secs(1);
    let mut slowest = Duration::ZERO;
    while Instant::now() < end {
        let began = Instant::now();
        round_trip(&mut visitor, &mut target).await;
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    for (visitor, target) in stalled {
        reset(visitor);
        within(PROMPT, "the target's end", target).await.unwrap();
    }
    drop((visitor, target));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_leaves_resets_a_visitor_that_uploads() {
    for finishes_first in [false, true] {
        let rig = Rig::start().await;
        let (mut visitor, mut target) = rig.pair().await;
        let upload = tokio::spawn(async move {
            let data = vec![1; 64 * 1024];
            while visitor.write_all(&data).await.is_ok() {}
        });
        target.read_exact(&mut vec![0; 1_000_000]).await.unwrap();
        if finishes_first {
            target.shutdown().await.unwrap();
            target.read_exact(&mut vec![0; 1_000_000]).await.unwrap();
        }
        drop(target);
        let began = Instant::now();
        within(PROMPT, "the reset", upload).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1));
        rig.at_rest().await;
    }
}

/// The mirror image, in which the visitor is silent, of what the forwards' tests have.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_finishes_does_not_wait_for_ever_for_a_silent_visitor() {
    let linger = Duration::from_millis(200);
    let rig = Rig::start_with(
        |config| config.splice.linger = linger,
        |config| config.splice.linger = linger,
    )
    .await;
    let (mut visitor, mut target) = rig.pair().await;
    target.shutdown().await.unwrap();
    let end = within(PROMPT, "the end", drain(&mut visitor)).await;
    assert_eq!(end.unwrap(), 0);
    rig.at_rest().await;
    assert!(
        within(PROMPT, "the reset", drain(&mut target))
            .await
            .is_err()
    );
}

/// Heartbeats must get through, or both ends would take the other for dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_link_delays_and_breaks_nothing() {
    let brisk = |config: &mut tunnel::mux::native::Config| {
        config.ping_interval = Duration::from_millis(300);
        config.silence = Duration::from_millis(1500);
    };
    let mut relay = None;
    let rig = Rig::start_with(
        |server| brisk(&mut server.mux),
        |agent| {
            brisk(&mut agent.mux);
            relay = Some(Relay::before(agent));
        },
    )
    .await;
    let relay = relay.unwrap();
    let sent = pattern(12 * 1024 * 1024);
    let (mut visitor, target) = rig.pair().await;
    let echo = tokio::spawn(echo(target));
    relay.set(Pace::BytesPerSecond(500_000));
    let free = async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        relay.set(Pace::Free);
    };
    let mut received = vec![0; sent.len()];
    let (mut read, mut write) = visitor.split();
    let exchange =
        async { tokio::join!(write.write_all(&sent), read.read_exact(&mut received), free) };
    let (written, read, ()) = within(LONG, "the echo", exchange).await;
    written.unwrap();
    read.unwrap();
    assert!(received == sent);
    drop(visitor);
    within(PROMPT, "the end", echo).await.unwrap();
    rig.at_rest().await;
}

/// What piles up is bounded, and the link whose peer takes nothing is given up with everything in
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_nobody_reads_is_given_up_and_its_backlog_is_bounded() {
    let mut relay = None;
    let rig = Rig::start_with(
        |server| server.link.write_stall = Duration::from_secs(1),
        |agent| relay = Some(Relay::before(agent)),
    )
    .await;
    let relay = relay.unwrap();
    let mut pairs = Vec::new();
    for _ in 0..8 {
        pairs.push(rig.pair().await);
    }
    relay.set(Pace::Stopped);
    let fills = pairs.iter_mut().map(|(visitor, _)| fill(visitor));
    let taken: usize = within(LONG, "the fills", join_all(fills))
        .await
        .iter()
        .sum();
    // Eight visitors' kernel buffers at both ends, and at most four MiB in the session.
    assert!(taken < 8 * 8 * 1024 * 1024, "{taken}");
    until("the end of the session", || rig.server.tasks() == 0).await;
    for (mut visitor, _) in pairs {
        let end = within(PROMPT, "the visitor's reset", drain(&mut visitor)).await;
        assert!(end.is_err(), "{end:?}");
    }
    within(PROMPT, "the loss", relay.cut_off(&rig.agent)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_before_an_end_arrive_whole() {
    for rig in rigs().await {
        for at in 0..60_usize {
            let (mut visitor, mut target) = rig.pair().await;
            let length = at.pow(3) * 7 + at;
            let sent = pattern(length);
            let (from, to) = if at % 2 == 0 {
                (&mut visitor, &mut target)
            } else {
                (&mut target, &mut visitor)
            };
            let write = async {
                from.write_all(&sent).await.unwrap();
                from.shutdown().await.unwrap();
            };
            let mut received = Vec::new();
            let exchange = async { tokio::join!(write, to.read_to_end(&mut received)) };
            within(PROMPT, "the bytes", exchange).await.1.unwrap();
            assert!(received == sent, "{} of {length}", received.len());
        }
        rig.at_rest().await;
    }
}
