//! The limit of open files, each of which may be a socket.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. The soft limit of most systems is 1024, for programs that
/// use `select(2)`.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Warns if a server cannot have as many connections as its options allow.
pub(crate) fn warn_if_few(connections: usize, sessions: usize, handshakes: usize) {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return;
    };
    let needed = [connections, sessions, handshakes, OTHERS]
        .into_iter()
        .fold(0_usize, usize::saturating_add);
    if u64::try_from(needed).is_ok_and(|needed| needed > limit) {
        tracing::warn!(
            limit,
            needed,
            "--max-connections {connections} cannot be reached with --max-sessions {sessions} and \
             --max-handshakes {handshakes}: raise the hard limit of open files (ulimit -Hn, \
             LimitNOFILE=), or lower them"
        );
    }
}

/// Files besides the connections: listeners, timers, the log, files that are read.
const OTHERS: usize = 64;
