//! One end of a stream whose bytes can be checked by their seed.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::Rng;

/// The bytes of one direction, by their seed. They repeat after a prime number of bytes, so that
/// lost or doubled frames are seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern(pub(super) u64);

const PERIOD: usize = 65_521;

impl Pattern {
    /// Returns enough of its bytes to cut a piece at any place.
    fn bytes(self) -> Vec<u8> {
        let mut rng = Rng::new(self.0);
        let mut bytes = vec![0; PERIOD];
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&rng.next().to_le_bytes()[..word.len()]);
        }
        bytes.extend_from_within(..PIECE);
        bytes
    }
}

/// What stands at `at`.
fn piece(bytes: &[u8], at: usize, length: usize) -> &[u8] {
    &bytes[at % PERIOD..][..length]
}

/// The most bytes that are written or read at once.
const PIECE: usize = 16 * 1024;

/// What one end does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) sends: Pattern,
    pub(super) receives: Pattern,
    pub(super) ending: Ending,
    /// What must have become of the other direction, where it is known.
    pub(super) expects: Expects,
    /// How long it waits before each piece that it reads.
    pub(super) delay: Duration,
}

/// How one end ends its stream, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Finishes behind this many bytes and goes on reading.
    Finish(usize),
    /// Resets once it has moved this many bytes.
    Reset(usize),
    /// Lets go once it has moved this many bytes, whatever it has not read.
    Abort(usize),
    /// Goes on until the stream is ended for it.
    None,
}

/// How the other end's direction must have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expects {
    /// After exactly this many bytes, in order.
    Whole(usize),
    /// Not as if it had been whole.
    Broken,
    Anything,
}

/// Plays one end to its end.
pub(super) async fn play(stream: TcpStream, part: Part) {
    let (moved, mut limit) = watch::channel(0);
    let (read, write) = stream.into_split();
    let most = match part.ending {
        Ending::Reset(limit) | Ending::Abort(limit) => limit,
        Ending::Finish(_) | Ending::None => usize::MAX,
    };
    let mut received = 0;
    let whole = {
        let both = async {
            let (sent, read) = tokio::join!(
                send(&write, part, &moved),
                receive(&read, part, &moved, &mut received)
            );
            // The kernel tells a reset once: to the writer, or to the reader.
            sent.is_ok() && read.is_ok()
        };
        tokio::select! {
            biased;
            _ = limit.wait_for(|moved| *moved >= most) => false,
            whole = both => whole,
        }
    };
    if let Ending::Reset(_) = part.ending {
        read.as_ref().set_zero_linger().unwrap();
    }
    match part.expects {
        Expects::Whole(length) => assert!(whole && received == length, "{received} of {part:?}"),
        Expects::Broken => assert!(!whole, "{received} as if whole: {part:?}"),
        Expects::Anything => {}
    }
}

async fn send(to: &OwnedWriteHalf, part: Part, moved: &watch::Sender<usize>) -> io::Result<()> {
    let most = match part.ending {
        Ending::Finish(length) => length,
        Ending::Reset(_) | Ending::Abort(_) | Ending::None => usize::MAX,
    };
    let bytes = part.sends.bytes();
    let mut sent = 0;
    while sent < most {
        let length = PIECE.min(most - sent);
        let mut rest = piece(&bytes, sent, length);
        while !rest.is_empty() {
            to.writable().await?;
            match to.try_write(rest) {
                Ok(written) => {
                    rest = &rest[written..];
                    moved.send_modify(|moved| *moved += written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        sent += length;
    }
    socket2::SockRef::from(to.as_ref()).shutdown(std::net::Shutdown::Write)
}

async fn receive(
    from: &OwnedReadHalf,
    part: Part,
    moved: &watch::Sender<usize>,
    received: &mut usize,
) -> io::Result<()> {
    let bytes = part.receives.bytes();
    let mut buffer = vec![0; PIECE];
    loop {
        if !part.delay.is_zero() {
            tokio::time::sleep(part.delay).await;
        }
        from.readable().await?;
        match from.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                let expected = piece(&bytes, *received, read);
                assert!(
                    buffer[..read] == *expected,
                    "bytes {received}.. of {part:?} are others"
                );
                *received += read;
                moved.send_modify(|moved| *moved += read);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads which stream this is, at the target.
pub(super) async fn number(target: &mut TcpStream) -> io::Result<u64> {
    target.read_u64().await
}

/// Says which stream this is, at the visitor.
pub(super) async fn introduce(visitor: &mut TcpStream, number: u64) -> io::Result<()> {
    visitor.write_u64(number).await
}
