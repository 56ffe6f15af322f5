//! What each thread has freed and keeps at hand. After a burst these pieces lie all over the heap,
//! and one of a few bytes holds its page for as long as its thread lives and has no use for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

/// The pieces that glibc keeps at hand, in bytes, how their sizes differ, and how many it keeps of
/// each size (`malloc.c`, and `glibc.malloc.tcache_max` and `glibc.malloc.tcache_count` in its
/// manual).
const SMALLEST: usize = 24;
const LARGEST: usize = 1032;
const GRAIN: usize = 16;
const OF_EACH: usize = 7;
/// A piece that is too large to be kept at hand, in bytes: when it is freed glibc looks whether the
/// heap that it is of can end earlier.
const LARGE: usize = 64 * 1024;
/// How long workers that are busy are waited for.
const PATIENCE: Duration = Duration::from_millis(100);

/// What was taken out of the caches.
#[derive(Default)]
pub(super) struct Taken(HashMap<ThreadId, Vec<Vec<u8>>>);

impl Taken {
    /// Frees the pieces for good: on a thread that ends, and its cache with it. Only once it is
    /// joined is that empty.
    pub(super) fn free(self) {
        // Where there can be no thread they are freed on this one, which keeps a few of them.
        if let Ok(freeing) = thread::Builder::new().spawn(|| drop(self)) {
            let _ = freeing.join();
        }
    }
}

/// Has every worker take out what it keeps at hand. One that is busy all the time is left out.
pub(super) async fn take_out() -> Taken {
    let workers = Handle::current().metrics().num_workers();
    let taken = Arc::new(Mutex::new(Taken(HashMap::with_capacity(workers))));
    let mut visits = JoinSet::new();
    for _ in 0..workers {
        visits.spawn(visit(Arc::clone(&taken), workers));
    }
    let _ = timeout(PATIENCE, visits.join_all()).await;
    std::mem::take(&mut *taken.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Has the worker that it runs on take its part, and holds it until all have, so that the other
/// visits come to the others.
async fn visit(taken: Arc<Mutex<Taken>>, workers: usize) {
    loop {
        {
            let Taken(taken) = &mut *taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken
                .entry(thread::current().id())
                .or_insert_with(own_pieces);
            if taken.len() >= workers {
                return;
            }
        }
        yield_now().await;
    }
}

/// Allocates as many pieces of each size as may be kept at hand: none is left there.
fn own_pieces() -> Vec<Vec<u8>> {
    // Larger than what is kept at hand: growing it would put pieces back.
    let mut pieces = Vec::with_capacity(LARGEST);
    for size in (SMALLEST..=LARGEST).step_by(GRAIN) {
        pieces.extend((0..OF_EACH).map(|_| Vec::with_capacity(size)));
    }
    pieces.push(Vec::with_capacity(LARGE));
    pieces
}
