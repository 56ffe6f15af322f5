//! Streams that one of their ends ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;

use super::pattern::{Ending, Expects, Part, Pattern, introduce, number, play};
use super::{COUNT, Endings, Rng};
use crate::leaks::rigs;
use crate::rig::{LONG, PROMPT, Rig, within};
use crate::world::connect;

/// At once, over one link.
const STREAMS: usize = 16;

/// The parts of both ends, visitor first, where `endings` says how they end.
fn plan(rng: &mut Rng, endings: [Ending; 2]) -> [Part; 2] {
    let patterns = [Pattern(rng.next()), Pattern(rng.next())];
    [0, 1].map(|at| Part {
        sends: patterns[at],
        receives: patterns[1 - at],
        ending: endings[at],
        expects: match (endings[at], endings[1 - at]) {
            (Ending::Finish(_), Ending::Finish(length)) => Expects::Whole(length),
            (Ending::None, Ending::Reset(_)) => Expects::Broken,
            _ => Expects::Anything,
        },
        delay: match rng.below(3) {
            0 => Duration::from_micros(rng.below(2000)),
            _ => Duration::ZERO,
        },
    })
}

/// Plays many streams over one tunnel. What a target is to do it finds by the stream's number.
async fn streams(rig: Rig, endings: impl Iterator<Item = Rng>, how: fn(&mut Rng) -> [Ending; 2]) {
    let parts: Arc<Mutex<HashMap<u64, Part>>> = Arc::default();
    let forward = rig.server.forwards()[0];
    let visitors = async {
        let mut playing = JoinSet::new();
        for mut rng in endings {
            let endings = how(&mut rng);
            let [at_visitor, at_target] = plan(&mut rng, endings);
            let number = rng.next();
            parts.lock().unwrap().insert(number, at_target);
            if playing.len() == STREAMS {
                playing.join_next().await.unwrap().unwrap();
            }
            playing.spawn(within(LONG, "a visitor's part", async move {
                let mut visitor = connect(forward).await.unwrap();
                introduce(&mut visitor, number).await.unwrap();
                play(visitor, at_visitor).await;
            }));
        }
        playing.join_all().await;
    };
    let mut targets = JoinSet::new();
    let accept = async {
        loop {
            let (mut target, _) = rig.target.accept().await.unwrap();
            let parts = Arc::clone(&parts);
            targets.spawn(within(LONG, "a target's part", async move {
                // A visitor may be gone before it has said anything.
                if let Ok(number) = number(&mut target).await {
                    let part = parts.lock().unwrap()[&number];
                    play(target, part).await;
                }
            }));
        }
    };
    tokio::select! {
        () = visitors => {}
        () = accept => {}
    }
    rig.at_rest().await;
    within(PROMPT, "the ends at the targets", targets.join_all()).await;
}

fn one_of_two(rng: &mut Rng, ending: Ending) -> [Ending; 2] {
    match rng.below(2) {
        0 => [ending, Ending::None],
        _ => [Ending::None, ending],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closes_lose_nothing() {
    let endings = Endings::begin("half-closes");
    streams(Rig::start().await, endings, |rng| {
        [(); 2].map(|()| Ending::Finish(rng.length()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_are_resets_at_the_other_end() {
    let mut endings = Endings::begin("resets");
    for rig in rigs().await {
        streams(rig, endings.by_ref().take(COUNT / 2), |rng| {
            let ending = Ending::Reset(rng.length());
            one_of_two(rng, ending)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aborts_end_the_other_end() {
    let mut endings = Endings::begin("aborts");
    for rig in rigs().await {
        streams(rig, endings.by_ref().take(COUNT / 2), |rng| {
            let ending = Ending::Abort(rng.length());
            one_of_two(rng, ending)
        })
        .await;
    }
}
