//! The second witness: reads a walk over every open file descriptor and gives it to the ledger.

use std::collections::HashSet;
use std::io::{self, Read};

use crate::ledger::Ledger;
use crate::news::next_sight;
use crate::verdict::Holder;

/// Bytes asked of the kernel at once.
const CHUNK: usize = 256 << 10;

/// Reads `walk` to its end into the ledger, whose walk must have begun. Sockets that are not of the audit count only when a
/// process of `targets` holds them. `now_ns` is called once for each chunk.
///
/// # Errors
///
/// When the kernel's stream cannot be read or ends within a record.
pub fn read(
    mut walk: impl Read,
    targets: &HashSet<u32>,
    ledger: &mut Ledger,
    mut now_ns: impl FnMut() -> u64,
) -> io::Result<()> {
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
        let now_ns = now_ns();
        let mut rest = bytes.get(..filled).unwrap_or_default();
        while let Some((sight, after)) = next_sight(rest) {
            rest = after;
            if sight.socket.is_some() {
                ledger.sight(&sight, now_ns);
            } else if targets.contains(&sight.sighting.tgid) {
                ledger.sight_stranger(Holder {
                    pid: sight.sighting.tgid,
                    fd: sight.sighting.fd,
                    comm: None,
                });
            }
        }
        let left = rest.len();
        let start = filled - left;
        bytes.copy_within(start..filled, 0);
        filled = left;
    }
}
