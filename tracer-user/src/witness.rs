//! The second witness: reads a walk over every open file descriptor and gives it to the ledger.

use std::collections::HashSet;
use std::io::{self, Read};

use tracer_core::event::{Sight, next_sight};
use tracer_core::ledger::{Ledger, Stranger};
use tracer_core::verdict::Holder;

/// Bytes asked of the kernel at once.
const CHUNK: usize = 256 << 10;

/// Reads `walk` to its end into the ledger, whose walk must have begun. Sockets that are not of the audit count only when a
/// process of `targets` holds them. `now_ns` is called once for each chunk.
///
/// # Errors
///
/// When the kernel's stream cannot be read or ends within a record.
pub fn read(
    walk: impl Read,
    targets: &HashSet<u32>,
    ledger: &mut Ledger,
    mut now_ns: impl FnMut() -> u64,
) -> io::Result<()> {
    each_chunk(walk, |sights| {
        let now_ns = now_ns();
        for sight in sights {
            match stranger(&sight) {
                None => ledger.sight(&sight, now_ns),
                Some(stranger) if targets.contains(&stranger.holder.pid) => {
                    ledger.sight_stranger(stranger);
                }
                Some(_) => {}
            }
        }
    })
}

/// Gives every descriptor for an internet socket that is not of the audit, but this process or one of the audit's has it, to
/// `take`.
///
/// # Errors
///
/// As [`read`].
pub fn strangers(walk: impl Read, mut take: impl FnMut(Stranger)) -> io::Result<()> {
    each_chunk(walk, |sights| {
        sights
            .filter_map(|sight| stranger(&sight))
            .for_each(&mut take)
    })
}

/// Whether a walk meets a descriptor that `is_wanted`.
///
/// # Errors
///
/// As [`read`].
pub fn meets(walk: impl Read, is_wanted: impl Fn(&Sight) -> bool) -> io::Result<bool> {
    let mut met = false;
    each_chunk(walk, |sights| {
        for sight in sights {
            met |= is_wanted(&sight);
        }
    })?;
    Ok(met)
}

fn stranger(sight: &Sight) -> Option<Stranger> {
    sight.socket.is_none().then_some(Stranger {
        holder: Holder {
            pid: sight.sighting.tgid,
            fd: sight.sighting.fd,
            comm: None,
        },
        local_port: sight.sighting.local_port,
    })
}

/// Gives what each read of `walk` brought to `take`.
fn each_chunk(mut walk: impl Read, mut take: impl FnMut(Sights<'_, '_>)) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    let mut filled = 0;
    loop {
        let room = bytes.get_mut(filled..).unwrap_or_default();
        let length = match walk.read(room) {
            Ok(0) if filled == 0 => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            // The kernel answers EAGAIN when it has walked long enough for one call.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        filled += length;
        let mut rest = bytes.get(..filled).unwrap_or_default();
        take(Sights(&mut rest));
        let left = rest.len();
        let start = filled - left;
        bytes.copy_within(start..filled, 0);
        filled = left;
    }
}

/// The whole sights at the front of some bytes.
struct Sights<'a, 'b>(&'a mut &'b [u8]);

impl Iterator for Sights<'_, '_> {
    type Item = Sight;

    fn next(&mut self) -> Option<Sight> {
        let (sight, rest) = next_sight(self.0)?;
        *self.0 = rest;
        Some(sight)
    }
}
