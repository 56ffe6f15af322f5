//! Dials Unix sockets. The file that was checked is the file that is dialed.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use socket2::{Domain, SockAddr, Type};
use tokio::net::UnixStream;

use crate::io::socket::{Io, Owner, PeerAddr, Role, Socket, bind};

/// The open file of a Unix socket. Changing symbolic links on its path no longer changes what is
/// dialed.
#[derive(Debug)]
pub struct SocketFile {
    file: OwnedFd,
    path: PathBuf,
}

impl SocketFile {
    /// Resolves `path` to its file. It may block on the file system.
    ///
    /// # Errors
    ///
    /// What `open(2)` says.
    pub fn find(path: &Path) -> io::Result<Self> {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let path = std::fs::read_link(handle(&file))?;
        Ok(Self { file, path })
    }

    /// Returns the path of the file with all symbolic links resolved. If the file was removed, no
    /// file has this path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connects to the socket. It is bound to its owner first. While the listener's backlog is full
    /// it retries, because such a connect fails instead of waiting (`connect(2)`, EAGAIN). The
    /// caller sets the deadline.
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

/// The pause before a retry when the backlog is full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// Returns a path that refers to the open file itself (`proc(5)`, /proc/pid/fd).
fn handle(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
