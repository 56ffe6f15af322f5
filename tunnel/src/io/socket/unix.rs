//! Unix sockets: the file that was checked is the one that is dialed.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use socket2::{Domain, SockAddr, Type};
use tokio::net::UnixStream;

use crate::io::socket::{Io, Owner, PeerAddr, Role, Socket, bind};

/// The file of a Unix socket. Whoever changes links on the way to it changes nothing of what is dialed.
#[derive(Debug)]
pub struct SocketFile {
    file: OwnedFd,
    path: PathBuf,
}

impl SocketFile {
    /// Follows `path` to its file. It blocks where the file system does.
    ///
    /// # Errors
    ///
    /// What `open(2)` says of the way there.
    pub fn find(path: &Path) -> io::Result<Self> {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let path = std::fs::read_link(handle(&file))?;
        Ok(Self { file, path })
    }

    /// Returns where the file is, after all symbolic links. A file that was removed has a path that no file has.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connects to the socket. It is bound to its owner before. While the listener's backlog is full it goes on trying, since such
    /// a connect does not wait by itself (`connect(2)`, EAGAIN); the caller has the deadline.
    ///
    /// # Errors
    ///
    /// What `socket(2)` or `connect(2)` say.
    #[expect(
        clippy::disallowed_methods,
        reason = "only the socket module makes sockets"
    )]
    pub async fn dial(self, role: Role, owner: Owner, label: &str) -> io::Result<Socket> {
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        bind(&socket, role, owner, label);
        let address = SockAddr::unix(handle(&self.file))?;
        while let Err(error) = socket.connect(&address) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
            tokio::time::sleep(BACKLOG_PAUSE).await;
        }
        Ok(Socket {
            io: Arc::new(Io::Unix(UnixStream::from_std(
                OwnedFd::from(socket).into(),
            )?)),
            peer: PeerAddr::Unix,
        })
    }
}

/// How long a full backlog is left alone.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// A path that leads to an open file itself (`proc(5)`, /proc/pid/fd).
fn handle(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
