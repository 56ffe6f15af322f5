//! Tables and queues that were once much fuller give their room back: a session of few streams is
//! not to pay for the burst of thousands before.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A table of less room than this stays as it is, in entries.
const MIN_CAPACITY: usize = 32;

/// Gives back the room of a table that is less than an eighth full. It is to be called after a
/// removal, and moves no entry more often than others were removed before.
pub fn shrink_if_sparse<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    let room = table.capacity();
    if room > MIN_CAPACITY && table.len() < room / 8 {
        table.shrink_to(room / 4);
    }
}

/// A queue of less room than this stays as it is, in entries.
const MIN_QUEUE_CAPACITY: usize = 128;

/// Takes the first entry of a queue, and gives the queue's room back with the last one.
pub fn pop<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front();
    if queue.is_empty() && queue.capacity() > MIN_QUEUE_CAPACITY {
        *queue = VecDeque::new();
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_burst_takes_little_room_and_little_work() {
        const COUNT: u32 = if cfg!(miri) { 1000 } else { 10_000 };
        let mut table: HashMap<u32, u32> = (0..COUNT).map(|key| (key, key)).collect();
        let mut moves = 0;
        for key in 0..COUNT {
            table.remove(&key);
            // A removal alone takes at most its own place from the room.
            let room = table.capacity();
            shrink_if_sparse(&mut table);
            if table.capacity() < room {
                moves += table.len();
            }
        }
        assert!(table.is_empty() && table.capacity() <= MIN_CAPACITY);
        assert!((1..COUNT as usize).contains(&moves), "{moves}");
    }

    #[test]
    fn a_queue_that_ran_empty_keeps_room_for_a_few() {
        let mut queue: VecDeque<u32> = (0..10_000).collect();
        assert!((0..10_000).eq(std::iter::from_fn(|| pop(&mut queue))));
        assert_eq!(queue.capacity(), 0);
        queue.push_back(1);
        assert_eq!(pop(&mut queue), Some(1));
        assert!((1..=MIN_QUEUE_CAPACITY).contains(&queue.capacity()));
    }
}
