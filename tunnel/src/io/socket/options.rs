//! How TCP detects that the other end is gone.

use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// How TCP detects that the other end is gone. Unix sockets need no options for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Probes while the connection is idle. `None` means no probes.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged, or a peer's window closed, before the
    /// connection is reset (`tcp(7)`, TCP_USER_TIMEOUT, in whole milliseconds). Without it the
    /// kernel retries for about 15 minutes. It also overrides the number of keep-alive probes.
    pub user_timeout: Option<Duration>,
}

/// When probes are sent (`tcp(7)`), in whole seconds, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How long the connection is idle before the first probe.
    pub idle: Duration,
    /// The time from one probe to the next.
    pub interval: Duration,
    /// Unanswered probes after which the connection is reset, 1 to 127.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(15),
            probes: 4,
        }
    }
}

impl Options {
    /// The default for sockets of streams: keep-alive only, since a peer that does not read for a
    /// long time is still alive.
    pub const STREAMS: Self = Self {
        keepalive: Some(Keepalive {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(15),
            probes: 4,
        }),
        user_timeout: None,
    };

    /// The default for links, whose ends always read: keep-alive, and a user timeout of 30 seconds.
    pub const LINKS: Self = Self {
        user_timeout: Some(Duration::from_secs(30)),
        ..Self::STREAMS
    };
}

/// Sets the options of a TCP socket. Accepted sockets inherit them from their listener.
pub(super) fn apply(socket: &impl AsFd, options: Options) {
    let socket = SockRef::from(socket);
    let keepalive = match options.keepalive {
        Some(keepalive) => {
            let second = Duration::from_secs(1);
            let probes = TcpKeepalive::new()
                .with_time(keepalive.idle.max(second))
                .with_interval(keepalive.interval.max(second))
                .with_retries(keepalive.probes.clamp(1, 127));
            socket.set_tcp_keepalive(&probes)
        }
        None => socket.set_keepalive(false),
    };
    let set = keepalive.and_then(|()| socket.set_tcp_user_timeout(options.user_timeout));
    if let Err(error) = set {
        tracing::debug!(%error, "TCP keep-alive or TCP_USER_TIMEOUT refused");
    }
}
