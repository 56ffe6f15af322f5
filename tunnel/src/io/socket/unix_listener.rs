//! Listening Unix sockets and their files.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Type};

use crate::io::socket::{Io, NOBODY, PeerAddr, Role, Socket, bind};

/// A listening Unix socket. Dropping it removes its file, unless the file was replaced.
#[derive(Debug)]
pub struct UnixListener {
    // Fields drop in this order: the file is removed while the socket still listens, so that no
    // other process takes it for stale.
    file: OwnFile,
    io: tokio::net::UnixListener,
}

/// The file that `bind(2)` created.
#[derive(Debug)]
struct OwnFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl OwnFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }

    fn is_ours(&self) -> bool {
        identity(&self.path).is_ok_and(|identity| identity == self.identity)
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if self.is_ours()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(
                path = %self.path.display(),
                %error,
                "cannot remove the file of a listening socket"
            );
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = std::fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

impl UnixListener {
    /// Listens at `path`. The file has `mode` before anyone can connect. A stale socket file is
    /// replaced.
    ///
    /// # Errors
    ///
    /// What `bind(2)` says, that another program listens there, or that the file is not a socket,
    /// with the path.
    pub fn listen(path: &Path, mode: u32, label: &str) -> io::Result<Self> {
        listen(path, mode, label).map_err(|error| {
            let why = format!("cannot listen on unix:{}: {error}", path.display());
            io::Error::new(error.kind(), why)
        })
    }

    /// Returns the path that it listens at.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Changes the mode of the file.
    ///
    /// # Errors
    ///
    /// What `chmod(2)` says, or that the file was replaced.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        if self.file.is_ours() {
            set_mode(&self.file.path, mode)
        } else {
            let why = format!("the file {} was replaced", self.file.path.display());
            Err(io::Error::new(io::ErrorKind::NotFound, why))
        }
    }

    /// Accepts the next connection. If descriptors or memory run out, it waits a moment instead of
    /// spinning.
    pub async fn accept(&self) -> Socket {
        loop {
            match self.io.accept().await {
                Ok((io, _)) => {
                    return Socket {
                        io: Arc::new(Io::Unix(io)),
                        peer: PeerAddr::Unix,
                    };
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        listener = %self.file.path.display(),
                        "cannot accept; is the limit of open files reached?"
                    );
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

#[expect(
    clippy::disallowed_methods,
    reason = "only the socket module makes sockets"
)]
fn listen(path: &Path, mode: u32, label: &str) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    bind(&socket, Role::Listener, NOBODY, label);
    // The file gets the socket's mode minus the umask (`unix_bind_bsd` in net/unix/af_unix.c), so
    // it never grants more than `mode`.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = OwnFile::of(path)?;
    set_mode(path, mode)?;
    socket.listen(BACKLOG)?;
    let io = std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket));
    let io = tokio::net::UnixListener::from_std(io)?;
    Ok(UnixListener { file, io })
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let file = std::fs::symlink_metadata(path)?;
    if file.permissions().mode() & 0o777 == mode {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Removes a socket file on which nobody listens.
#[expect(
    clippy::disallowed_methods,
    reason = "only the socket module makes sockets"
)]
fn remove_stale(path: &Path) -> io::Result<()> {
    let file = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    if !file.file_type().is_socket() {
        let why = "the file is not a socket; remove it, or listen elsewhere";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    bind(&probe, Role::Control, NOBODY, "does anybody listen");
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog has a listener as well.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => {
            let why = "another program listens there; stop it, or listen elsewhere";
            Err(io::Error::new(io::ErrorKind::AddrInUse, why))
        }
    }
}
