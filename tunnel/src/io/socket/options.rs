//! How TCP finds out that the other end is gone.

use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// How TCP finds out that the other end is gone. Unix sockets know without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Probes while nothing is sent; none without.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged, or a peer's window shut, before the connection is reset (`tcp(7)`,
    /// TCP_USER_TIMEOUT, in whole milliseconds). Without it the kernel goes on for a quarter of an hour. It also ends what the
    /// probes of `keepalive` find dead, whatever their number.
    pub user_timeout: Option<Duration>,
}

/// When probes are sent (`tcp(7)`), in whole seconds of at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How long nothing may arrive before the first probe.
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
    /// The default for sockets of streams: keep-alive. A peer that does not read for long is alive all the same.
    pub const STREAMS: Self = Self {
        keepalive: Some(Keepalive {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(15),
            probes: 4,
        }),
        user_timeout: None,
    };

    /// The default for links, whose ends always read: keep-alive, and 30 seconds for what was sent.
    pub const LINKS: Self = Self {
        user_timeout: Some(Duration::from_secs(30)),
        ..Self::STREAMS
    };
}

/// Sets the options of a TCP socket. Those that a listening one accepts have them from it.
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
