//! Streams that are being opened: dials that hang, fail, or are no longer wanted.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::sleep;
use tunnel::policy::Policy;
use tunnel::server::Forward;
use tunnel::target::Target;

use crate::rig::{LONG, PROMPT, Rig, drain, loopback, refused, reset, round_trip, until, within};
use crate::world::{BlackHole, TcpListener, connect};

/// A tunnel whose second forward goes into a black hole.
async fn rig_beside(hole: &BlackHole, dial_timeout: Duration) -> Rig {
    let address = hole.address.to_string();
    let forward = Forward {
        listen: loopback().into(),
        agent: "web".to_owned(),
        target: Target::tcp(&address, None).unwrap(),
    };
    let brisk = |config: &mut tunnel::mux::native::Config| {
        config.ping_interval = Duration::from_millis(200);
        config.silence = Duration::from_secs(1);
    };
    Rig::start_with(
        |server| {
            server.forwards.push(forward);
            brisk(&mut server.mux);
        },
        |agent| {
            agent.policy = Policy::new(vec!["127.0.0.0/8:*".parse().unwrap()]);
            agent.dial_timeout = dial_timeout;
            brisk(&mut agent.mux);
        },
    )
    .await
}

/// A dial that was answered when its visitor had left must not leave its socket behind.
#[tokio::test(flavor = "multi_thread")]
async fn opens_cancelled_at_any_moment_leave_nothing() {
    let rig = Rig::start().await;
    let targets = async {
        let mut ends = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = rig.target.accept() => {
                    let (mut target, _) = accepted.unwrap();
                    ends.spawn(async move { drain(&mut target).await.map(drop) });
                }
                // Every target sees the end of its connection.
                () = sleep(Duration::from_millis(500)) => return ends.join_all().await,
            }
        }
    };
    let visitors = async {
        for round in 0..10 {
            let batch = (0..50).map(|at: u64| {
                let visitor = rig.visitor();
                async move {
                    let visitor = visitor.await;
                    sleep(Duration::from_micros((at * 97 + round * 31) % 3000)).await;
                    if at.is_multiple_of(2) {
                        reset(visitor);
                    }
                }
            });
            join_all(batch).await;
        }
    };
    let ends = async { tokio::join!(visitors, targets).1 };
    assert!(!within(LONG, "the ends", ends).await.is_empty());
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dial_that_times_out_ends_its_own_stream_only() {
    let hole = BlackHole::open().await;
    let rig = rig_beside(&hole, Duration::from_secs(1)).await;
    let (mut visitor, mut target) = rig.pair().await;
    let mut unlucky = connect(rig.server.forwards()[1]).await.unwrap();
    until("the dial", || hole.dials() == 1).await;
    round_trip(&mut visitor, &mut target).await;
    let end = within(PROMPT, "the reset", drain(&mut unlucky)).await;
    assert!(end.is_err());
    assert_eq!(hole.dials(), 0);
    round_trip(&mut visitor, &mut target).await;
    drop((visitor, target));
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dials_that_hang_hold_up_nothing() {
    let hole = BlackHole::open().await;
    let rig = rig_beside(&hole, LONG).await;
    let unlucky = join_all((0..100).map(|_| connect(rig.server.forwards()[1]))).await;
    until("the dials", || hole.dials() == 100).await;
    // Heartbeats, too: the session would be over after a second.
    let end = Instant::now() + Duration::from_millis(1500);
    let mut slowest = Duration::ZERO;
    while Instant::now() < end {
        let began = Instant::now();
        let (mut visitor, mut target) = rig.pair().await;
        round_trip(&mut visitor, &mut target).await;
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    unlucky.into_iter().flatten().for_each(reset);
    until("the end of the dials", || hole.dials() == 0).await;
    rig.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dials_end_with_their_session() {
    for agent_leaves in [true, false] {
        let hole = BlackHole::open().await;
        let rig = rig_beside(&hole, LONG).await;
        let visitors = join_all((0..20).map(|_| connect(rig.server.forwards()[1]))).await;
        until("the dials", || hole.dials() == 20).await;
        let Rig { server, agent, .. } = rig;
        if agent_leaves {
            drop(agent);
            until("the end of the session", || server.tasks() == 0).await;
        } else {
            within(PROMPT, "the drain", server.drain(Duration::ZERO)).await;
            within(PROMPT, "the loss", agent.disconnected()).await;
        }
        until("the end of the dials", || hole.dials() == 0).await;
        for visitor in visitors {
            let end = within(PROMPT, "the reset", drain(&mut visitor.unwrap())).await;
            assert!(end.is_err());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_of_a_refused_target_are_turned_away_at_once() {
    let rig = Rig::start().await;
    let address = rig.target.local_addr().unwrap();
    let Rig {
        server,
        agent,
        target,
    } = rig;
    drop(target);
    for _ in 0..10 {
        let visitors = (0..50).map(|_| refused(server.forwards()[0]));
        join_all(visitors).await;
    }
    let target = TcpListener::bind(address).await.unwrap();
    Rig {
        server,
        agent,
        target,
    }
    .at_rest()
    .await;
}
