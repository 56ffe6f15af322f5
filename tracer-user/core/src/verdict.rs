//! Findings, their levels, and the verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;
use tracer_abi::annotation::{Owner, Role};

/// What a socket did wrong. The rules are tried in this order; a socket has at most one finding,
/// that of the first broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Its owner ended, and a descriptor was open for longer than grace after that.
    OutlivedRequest,
    /// Only its session ended, and a descriptor was open for longer than grace after that.
    SessionRemnant,
    /// TCP was in CLOSE_WAIT, and the program sent nothing for longer than grace: the peer finished
    /// and the descriptor stayed open.
    PeerClosed,
    /// TCP fell to CLOSE (reset, failed connect), and a descriptor was open for longer than grace
    /// after that.
    DeadSocket,
    /// A process that annotates opened a TCP socket and did not bind it to an owner within grace.
    Unowned,
    /// It was passed over and kept, in a pile of such connections that grows.
    PileUp,
    /// Bytes waited to be sent or read, or a connect waited for its answer, without progress for
    /// the stuck time.
    Stuck,
    /// No byte moved for the idle time.
    Idle,
    /// Released only because the process exited.
    OpenAtExit,
}

impl Kind {
    /// Every kind, in the order in which they are tried.
    pub const ALL: [Self; 9] = [
        Self::OutlivedRequest,
        Self::SessionRemnant,
        Self::PeerClosed,
        Self::DeadSocket,
        Self::Unowned,
        Self::PileUp,
        Self::Stuck,
        Self::Idle,
        Self::OpenAtExit,
    ];

    /// Returns the name used on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutlivedRequest => "outlived-request",
            Self::SessionRemnant => "session-remnant",
            Self::PeerClosed => "peer-closed",
            Self::DeadSocket => "dead-socket",
            Self::Unowned => "unowned",
            Self::PileUp => "pile-up",
            Self::Stuck => "stuck",
            Self::Idle => "idle",
            Self::OpenAtExit => "open-at-exit",
        }
    }

    const fn default_level(self) -> Level {
        match self {
            Self::OutlivedRequest
            | Self::SessionRemnant
            | Self::PeerClosed
            | Self::DeadSocket
            | Self::Unowned
            | Self::PileUp => Level::Deny,
            Self::Stuck | Self::Idle | Self::OpenAtExit => Level::Warn,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An unknown kind of finding.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "no finding is called {0:?}: use outlived-request, session-remnant, peer-closed, dead-socket, \
     unowned, pile-up, stuck, idle or open-at-exit"
)]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// What a finding means for the verdict, as with lints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// The verdict is `leak`.
    Deny,
    /// It is reported.
    Warn,
    /// It is not counted.
    Allow,
}

impl Level {
    /// Returns the name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Warn => "warn",
            Self::Allow => "allow",
        }
    }
}

/// The level of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels(BTreeMap<Kind, Level>);

impl Levels {
    /// Sets the level of one kind; the last setting counts.
    pub fn set(&mut self, kind: Kind, level: Level) {
        self.0.insert(kind, level);
    }

    /// Returns the level of a kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Level {
        self.0.get(&kind).copied().unwrap_or(kind.default_level())
    }
}

/// What a process is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessName {
    /// Its `comm`, which it may change.
    pub comm: String,
    /// The path of its executable, as far as it can be read.
    pub executable: Option<String>,
}

/// A process that has the socket open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its file descriptor.
    pub fd: u32,
    /// Its name, shared by all that it holds; `None` when it was gone before it could be asked.
    pub name: Option<Arc<ProcessName>>,
}

/// Who a socket was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerInfo {
    /// Session and stream.
    pub owner: Owner,
    /// What the socket was for; `None` if this build does not know the role.
    pub role: Option<Role>,
    /// The program's own text; `None` if the record with it was lost.
    pub label: Option<String>,
}

/// The two addresses of a connection, as far as known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// A broken rule, with the evidence. Times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it did.
    pub kind: Kind,
    /// The socket's identity in this audit.
    pub id: u64,
    /// The kernel's cookie.
    pub cookie: Option<u64>,
    /// The connection.
    pub tuple: Option<Tuple>,
    /// Whether a listener accepted it.
    pub accepted: bool,
    /// `TCP_*` number; `None` for sockets that are not TCP.
    pub tcp_state: Option<u16>,
    /// Who it was for.
    pub owner: Option<OwnerInfo>,
    /// Who had it open when it was last observed.
    pub holders: Vec<Holder>,
    /// How many more there were than are named.
    pub holders_unlisted: u64,
    /// The process that opened it, and its name.
    pub opener: Option<(u32, String)>,
    /// When it was opened, or adopted.
    pub born_ns: u64,
    /// Whether it may have existed before the audit: when it was opened is not known.
    pub is_adopted: bool,
    /// When the request it served ended.
    pub ended_ns: Option<u64>,
    /// When the clock of the rule started: END, CLOSE_WAIT, CLOSE, opening or last byte.
    pub since_ns: u64,
    /// When it was released; `None` while it is open.
    pub released_ns: Option<u64>,
    /// The process that dropped the last reference, and its name.
    pub releaser: Option<(u32, String)>,
    /// When it was last observed.
    pub seen_ns: u64,
    /// Payload bytes received.
    pub bytes_in: Option<u64>,
    /// Payload bytes sent and acknowledged.
    pub bytes_out: Option<u64>,
    /// Bytes received that the program has not read.
    pub unread: Option<u32>,
    /// Bytes written that the peer has not acknowledged.
    pub unsent: Option<u32>,
}

impl Holder {
    /// Returns the `comm` of the process, if it is known.
    #[must_use]
    pub fn comm(&self) -> Option<&str> {
        self.name.as_ref().map(|name| name.comm.as_str())
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every socket closed when its request was over.
    Clean,
    /// There is a denied finding.
    Leak,
    /// The evidence is not complete.
    Inconclusive,
}

impl Verdict {
    /// Decides the verdict from the number of denied findings and from what is missing. A leak that
    /// was seen is a leak in spite of losses; with losses nothing is clean.
    #[must_use]
    pub const fn of(denied: u64, missing: &[String]) -> Self {
        match (denied, missing.is_empty()) {
            (0, true) => Self::Clean,
            (0, false) => Self::Inconclusive,
            _ => Self::Leak,
        }
    }

    /// Returns the name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Leak => "leak",
            Self::Inconclusive => "inconclusive",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_stands_in_spite_of_losses_and_clean_does_not() {
        let missing = ["3 records were lost".to_owned()];
        assert_eq!(Verdict::of(0, &[]), Verdict::Clean);
        assert_eq!(Verdict::of(0, &missing), Verdict::Inconclusive);
        assert_eq!(Verdict::of(1, &missing), Verdict::Leak);
        assert_eq!(Verdict::of(1, &[]), Verdict::Leak);
    }

    #[test]
    fn every_kind_has_a_name_that_parses_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("leak".parse::<Kind>().is_err());
    }

    #[test]
    fn the_last_setting_of_a_level_counts() {
        let mut levels = Levels::default();
        assert_eq!(levels.of(Kind::Idle), Level::Warn);
        levels.set(Kind::Idle, Level::Deny);
        levels.set(Kind::Idle, Level::Allow);
        assert_eq!(levels.of(Kind::Idle), Level::Allow);
    }
}
