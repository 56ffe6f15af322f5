//! The witness: reads a walk over every open file descriptor into the ledger.

use std::io::{self, Read};

use tracer_abi::facts::{AF_INET, AF_INET6};
use tracer_core::event::{Descriptor, next_descriptor};
use tracer_core::ledger::{ForeignSocket, Ledger};
use tracer_core::verdict::Holder;

/// Bytes asked of the kernel at once.
const CHUNK: usize = 256 << 10;

/// Reads `walk` to its end into the ledger, whose walk must have begun. Sockets from outside the
/// audit count only if the process that holds them `is_target`. `now_ns` is called once for each
/// chunk.
///
/// # Errors
///
/// When the kernel's stream cannot be read or ends within a record.
pub fn read(
    walk: impl Read,
    is_target: impl Fn(u32) -> bool,
    ledger: &mut Ledger,
    mut now_ns: impl FnMut() -> u64,
) -> io::Result<()> {
    each_chunk(walk, |descriptors| {
        let now_ns = now_ns();
        for descriptor in descriptors {
            let sighting = &descriptor.sighting;
            if descriptor.socket.is_some() {
                ledger.observe(&descriptor, now_ns);
            } else if !is_target(sighting.tgid) {
                // The tracer's own.
            } else if let Some(foreign) = foreign_socket(&descriptor) {
                ledger.observe_foreign(foreign);
            } else {
                ledger.observe_unfollowed(sighting);
            }
        }
    })
}

/// Calls `take` with every descriptor that `walk` meets.
///
/// # Errors
///
/// As [`read`].
pub fn each(walk: impl Read, take: impl FnMut(Descriptor)) -> io::Result<()> {
    let mut take = take;
    each_chunk(walk, |descriptors| descriptors.for_each(&mut take))
}

/// Calls `take` for every internet socket from outside the audit that this process or an audited
/// one holds.
///
/// # Errors
///
/// As [`read`].
pub fn foreign_sockets(walk: impl Read, mut take: impl FnMut(ForeignSocket)) -> io::Result<()> {
    each_chunk(walk, |descriptors| {
        descriptors
            .filter_map(|descriptor| foreign_socket(&descriptor))
            .for_each(&mut take)
    })
}

/// Whether a walk meets a descriptor that `is_wanted`.
///
/// # Errors
///
/// As [`read`].
pub fn meets(walk: impl Read, is_wanted: impl Fn(&Descriptor) -> bool) -> io::Result<bool> {
    let mut met = false;
    each_chunk(walk, |descriptors| {
        for descriptor in descriptors {
            met |= is_wanted(&descriptor);
        }
    })?;
    Ok(met)
}

/// Returns an internet socket that is not in the ledger.
fn foreign_socket(descriptor: &Descriptor) -> Option<ForeignSocket> {
    let sighting = &descriptor.sighting;
    let is_internet = matches!(sighting.family, AF_INET | AF_INET6);
    (descriptor.socket.is_none() && is_internet).then_some(ForeignSocket {
        holder: Holder {
            pid: sighting.tgid,
            fd: sighting.fd,
            name: None,
        },
        local_port: sighting.local_port,
    })
}

/// Calls `take` with the descriptors of each read of `walk`.
fn each_chunk(mut walk: impl Read, mut take: impl FnMut(Descriptors<'_, '_>)) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    let mut filled = 0;
    loop {
        let room = bytes.get_mut(filled..).unwrap_or_default();
        let length = match walk.read(room) {
            Ok(0) if filled == 0 => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            // The kernel returns EAGAIN when one call has walked long enough.
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
        take(Descriptors(&mut rest));
        let left = rest.len();
        let start = filled - left;
        bytes.copy_within(start..filled, 0);
        filled = left;
    }
}

/// The complete descriptors at the start of some bytes.
struct Descriptors<'a, 'b>(&'a mut &'b [u8]);

impl Iterator for Descriptors<'_, '_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let (descriptor, rest) = next_descriptor(self.0)?;
        *self.0 = rest;
        Some(descriptor)
    }
}
