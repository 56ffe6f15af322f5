//! Tables that were once much fuller give their room back: a session of few streams is not to pay for the burst of thousands before.

use std::collections::HashMap;
use std::hash::Hash;

/// A table of less room than this stays as it is, in entries.
const WORTH: usize = 256;

/// Gives back the room of a table that is less than an eighth full. It is to be called after a removal, and moves no entry more often than
/// others were removed before.
pub(crate) fn give_back<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    let room = table.capacity();
    if room > WORTH && table.len() < room / 8 {
        table.shrink_to(room / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_burst_takes_little_room_and_little_work() {
        let mut table: HashMap<u32, u32> = (0..10_000).map(|key| (key, key)).collect();
        let mut moves = 0;
        for key in 0..10_000 {
            table.remove(&key);
            // A removal alone takes at most its own place from the room.
            let room = table.capacity();
            give_back(&mut table);
            if table.capacity() < room {
                moves += table.len();
            }
        }
        assert!(table.is_empty() && table.capacity() <= WORTH);
        assert!((1..10_000).contains(&moves), "{moves}");
    }
}
