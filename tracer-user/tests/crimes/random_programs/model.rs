//! A naive model of the rules: what may happen to a socket, and the finding that must follow.

use tracer_abi::annotation::Role;

/// How many owners a socket may have.
const OWNERS: usize = 3;

/// What may happen to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is bound to the owner of this number, which may have ended before.
    Bind(Role, usize),
    /// END of the owner of this number, whatever the socket is bound to.
    End(usize),
    /// END of the whole session.
    EndSession,
    /// It sends a byte, which the peer reads if it is still open.
    Send,
    /// It finishes its own side.
    Finish,
    /// The peer finishes its side and goes on reading.
    PeerFinishes,
    /// The peer closes.
    PeerCloses,
    /// The peer resets the connection.
    PeerResets,
    /// Nothing happens for longer than grace.
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

/// One socket under the rules. Only waits advance the clock, each by longer than grace.
#[derive(Clone, Copy, Debug, Default)]
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
    /// Nobody looks at it while it is in CLOSE_WAIT: what it sends there hides that it was silent
    /// before.
    unwatched: bool,
    /// The worst finding so far, as an index into [`KINDS`].
    found: Option<usize>,
}

/// The kinds in order of precedence.
const KINDS: [&str; 5] = [
    "outlived-request",
    "session-remnant",
    "peer-closed",
    "dead-socket",
    "unowned",
];

/// The index of that kind.
const PEER_CLOSED: usize = 2;

impl Model {
    /// A socket without an owner.
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

    /// The same socket while no walk looks at it.
    pub(super) fn unwatched(self) -> Self {
        Self {
            unwatched: true,
            ..self
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Bind(role, owner) => {
                self.judge_peer_done();
                if self.is_pooled() {
                    // The rules start to run as it leaves the pool.
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
            Step::Send if !self.finished => {
                if self.unwatched {
                    self.peer_done = self.peer_done.map(|_| self.now);
                }
                // A closed peer answers with a reset.
                if self.peer_gone {
                    self.die();
                }
            }
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

    /// Leaves CLOSE_WAIT, if it was in it: in time, or the finding is made already.
    fn die(&mut self) {
        self.judge_peer_done();
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
            !self.unwatched && late(self.peer_done),
            late(self.dead),
            self.owes_owner && self.bound.is_none(),
        ];
        let first = broken.iter().position(|broken| *broken);
        // Of several findings the one of the earliest rule is kept.
        self.found = self.found.into_iter().chain(first).min();
    }

    /// What the kernel side knows as the socket leaves CLOSE_WAIT or gets another owner, without a
    /// walk.
    fn judge_peer_done(&mut self) {
        let is_late = self.peer_done.is_some_and(|since| since < self.now);
        if is_late && !self.is_pooled() {
            let found = self.found.unwrap_or(PEER_CLOSED);
            self.found = Some(found.min(PEER_CLOSED));
        }
    }

    /// Releases the socket. Returns the kind of the finding that must be reported.
    pub(super) fn released(mut self) -> Option<&'static str> {
        self.judge_peer_done();
        self.found.map(|index| KINDS[index])
    }
}

impl Step {
    /// Whether the step is an annotation.
    pub(super) fn is_annotation(self) -> bool {
        matches!(self, Self::Bind(..) | Self::End(_) | Self::EndSession)
    }

    /// Returns the same step as the peer sees it.
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
