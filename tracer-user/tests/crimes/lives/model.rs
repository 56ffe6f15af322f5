//! What may happen to a socket, and what the rules say of it then.

use tracer_abi::annotation::Role;

/// How many owners a socket may have.
const OWNERS: usize = 3;

/// What may happen to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is bound to the owner of this number, which may have ended before.
    Bind(Role, usize),
    /// The END of the owner of this number is told, on this socket, whoever it is bound to.
    End(usize),
    /// Its session's is.
    EndSession,
    /// It sends a byte, which is read if anybody is there.
    Send,
    /// It finishes its own side.
    Finish,
    /// The peer finishes its side and goes on reading.
    PeerFinishes,
    /// The peer closes.
    PeerCloses,
    /// The peer resets the connection.
    PeerResets,
    /// Longer than grace, nothing.
    Wait,
}

pub(super) const CHOICES: [Step; 15] = [
    Step::Bind(Role::Stream, 0),
    Step::Bind(Role::Stream, 1),
    Step::Bind(Role::Pool, 2),
    Step::Bind(Role::Link, 1),
    Step::End(0),
    Step::End(1),
    Step::EndSession,
    Step::Send,
    Step::Finish,
    Step::PeerFinishes,
    Step::PeerCloses,
    Step::PeerResets,
    Step::Wait,
    Step::Wait,
    Step::Wait,
];

#[derive(Clone, Copy, Debug)]
struct Bound {
    role: Role,
    owner: usize,
    since: u64,
}

/// What the rules say of one socket, with a clock that only waits move on: each is longer than grace.
#[derive(Debug, Default)]
pub(super) struct Model {
    now: u64,
    /// Its process annotates.
    owes_owner: bool,
    /// The present BIND.
    bound: Option<Bound>,
    ended: [Option<u64>; OWNERS],
    session_ended: Option<u64>,
    finished: bool,
    peer_finished: bool,
    peer_gone: bool,
    /// In CLOSE_WAIT since.
    peer_done: Option<u64>,
    /// In CLOSE since.
    dead: Option<u64>,
    /// The worst that it did, by its place in [`KINDS`].
    guilt: Option<usize>,
}

/// The kinds in the order in which they count.
const KINDS: [&str; 5] = [
    "outlived-request",
    "session-remnant",
    "peer-closed",
    "dead-socket",
    "unowned",
];

impl Model {
    /// A socket that is bound to nobody.
    pub(super) fn unbound(owes_owner: bool) -> Self {
        Self {
            owes_owner,
            ..Self::default()
        }
    }

    /// A socket that serves no request.
    pub(super) fn pooled() -> Self {
        Self {
            bound: Some(Bound {
                role: Role::Pool,
                owner: 0,
                since: 0,
            }),
            ..Self::default()
        }
    }

    pub(super) fn live(&mut self, step: Step) {
        match step {
            Step::Bind(role, owner) => {
                if self.is_pooled() {
                    // Only idleness counted before.
                    self.peer_done = self.peer_done.map(|_| self.now);
                    self.dead = self.dead.map(|_| self.now);
                }
                self.bound = Some(Bound {
                    role,
                    owner,
                    since: self.now,
                });
            }
            Step::End(owner) => {
                let ended = &mut self.ended[owner];
                *ended = ended.or(Some(self.now));
            }
            Step::EndSession => self.session_ended = self.session_ended.or(Some(self.now)),
            // Whoever is gone answers with a reset.
            Step::Send if self.peer_gone && !self.finished => self.die(),
            Step::Send => {}
            Step::Finish if self.finished => {}
            Step::Finish => {
                self.finished = true;
                if self.peer_finished {
                    self.die();
                }
            }
            Step::PeerFinishes => self.peer_finishes(),
            Step::PeerCloses => {
                self.peer_finishes();
                self.peer_gone = true;
            }
            Step::PeerResets => {
                if !self.peer_gone {
                    self.die();
                }
                self.peer_gone = true;
            }
            Step::Wait => {
                self.now += 1;
                self.judge();
            }
        }
    }

    fn peer_finishes(&mut self) {
        if self.peer_finished || self.peer_gone || self.dead.is_some() {
            return;
        }
        self.peer_finished = true;
        if self.finished {
            self.die();
        } else {
            self.peer_done = Some(self.now);
        }
    }

    /// It leaves CLOSE_WAIT, if it was there: in time, or it is judged already.
    fn die(&mut self) {
        self.peer_done = None;
        self.dead = self.dead.or(Some(self.now));
    }

    fn is_pooled(&self) -> bool {
        matches!(self.bound, Some(bound) if bound.role == Role::Pool)
    }

    fn judge(&mut self) {
        if self.is_pooled() {
            return;
        }
        let late = |since: Option<u64>| since.is_some_and(|since| since < self.now);
        let over = |end: Option<u64>| Some(end?.max(self.bound?.since));
        let own_end = self.bound.and_then(|bound| self.ended[bound.owner]);
        let broken = [
            late(over(own_end)),
            late(over(self.session_ended)),
            late(self.peer_done),
            late(self.dead),
            self.owes_owner && self.bound.is_none(),
        ];
        let first = broken.iter().position(|broken| *broken);
        // Of several that it earns in its life, the earliest counts.
        self.guilt = self.guilt.into_iter().chain(first).min();
    }

    /// What must be found.
    pub(super) fn guilt(&self) -> Option<&'static str> {
        self.guilt.map(|place| KINDS[place])
    }
}

impl Step {
    /// Whether it is the kernel that is told of it.
    pub(super) fn is_annotation(self) -> bool {
        matches!(self, Self::Bind(..) | Self::End(_) | Self::EndSession)
    }

    /// What the peer lives through meanwhile, if it is there.
    pub(super) fn of_peer(self) -> Option<Self> {
        match self {
            Self::Finish => Some(Self::PeerFinishes),
            Self::PeerFinishes => Some(Self::Finish),
            Self::Wait => Some(Self::Wait),
            Self::Bind(..)
            | Self::End(_)
            | Self::EndSession
            | Self::Send
            | Self::PeerCloses
            | Self::PeerResets => None,
        }
    }
}
