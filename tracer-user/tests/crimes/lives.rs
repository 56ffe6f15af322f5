//! Lives at random: many sockets at once, each with a plan of its own, and a model of the rules that says what must be found of it.
//!
//! `WATERTIGHT_TEST_SEED` makes the same plans again; a test that fails has printed its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use libtest_mimic::{Failed, Trial};
use rustix::net::SocketFlags;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tracer_abi::annotation::{self, Owner, Role};

use crate::case::{self, COMMIT, expect};

/// What the program under audit does, with annotations and without.
const DEEDS: [&str; 2] = ["lives", "lives_unannotated"];
/// Lives lived at once.
const COUNT: u64 = 240;
/// How many owners a socket may have.
const OWNERS: usize = 3;
/// How many steps a life has at most, and how often a socket is copied.
const STEPS: u8 = 8;
const COPIES: u8 = 3;
/// One socket in so many is held by another process too.
const KEEPERS: u8 = 8;
/// The grace, as the tracer is told it.
const GRACE: &str = "1s";
/// How long the tracer is left alone, and how long it is stopped, where it is.
const BEFORE_A_STOP: Duration = Duration::from_millis(1500);
const A_STOP: Duration = Duration::from_secs(4);
/// What happens without a [`Step::Wait`] between is together within this time, or nothing is said of that life: a busy machine may
/// take longer than the grace.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Longer than the grace, and long enough for the witness to look, whose second look convicts where the first one met the socket.
const A_WAIT: Duration = Duration::from_millis(3200);
/// How many, of both ends of the connections, must be lived in time.
const TIMELY: u64 = 2 * COUNT * 3 / 4;

/// What may happen to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
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

const CHOICES: [Step; 15] = [
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
struct Model {
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
    guilt: Option<&'static str>,
}

/// How the peer of a socket that annotates is bound: it serves no request.
const POOLED: Bound = Bound {
    role: Role::Pool,
    owner: 0,
    since: 0,
};

/// The kinds in the order in which they count.
const KINDS: [&str; 5] = [
    "outlived-request",
    "session-remnant",
    "peer-closed",
    "dead-socket",
    "unowned",
];

impl Model {
    fn live(&mut self, step: Step) {
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
        let before = KINDS.iter().position(|kind| Some(*kind) == self.guilt);
        // Of several that it earns in its life, the earliest counts.
        self.guilt = match (first, before) {
            (Some(first), Some(before)) => Some(KINDS[first.min(before)]),
            (first, before) => first.or(before).map(|kind| KINDS[kind]),
        };
    }
}

impl Step {
    /// Whether it is the kernel that is told of it.
    fn is_annotation(self) -> bool {
        matches!(self, Self::Bind(..) | Self::End(_) | Self::EndSession)
    }

    /// What the peer lives through meanwhile, if it is there.
    fn of_peer(self) -> Option<Self> {
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

/// Lives all lives, if that is the deed, and says of each how it was lived and what the rules say.
pub(crate) fn commit(deed: &str) -> bool {
    let Some(kind) = DEEDS.iter().position(|known| *known == deed) else {
        return false;
    };
    let annotates = kind == 0;
    let seed: u64 = std::env::var("WATERTIGHT_TEST_SEED")
        .unwrap()
        .parse()
        .unwrap();
    let lives: Vec<_> = (1..=COUNT)
        .map(|number| thread::spawn(move || live(seed, number, annotates)))
        .collect();
    for life in lives {
        println!("{}", life.join().unwrap().join("\n"));
    }
    true
}

/// Returns what is to be said of both ends of a connection.
fn live(seed: u64, number: u64, annotates: bool) -> [String; 2] {
    // So that neighbours have nothing in common.
    let own = Rng::with_seed(number).u64(..);
    let mut chance = Rng::with_seed(seed ^ own);
    let (socket, mut peer) = connection(&mut chance, annotates);
    let copies: Vec<TcpStream> = (0..chance.u8(..COPIES))
        .map(|_| socket.try_clone().unwrap())
        .collect();
    let keeper = (chance.u8(..KEEPERS) == 0).then(|| Keeper::start(&socket));
    let names = [
        name(&socket, &copies, keeper.as_ref()),
        name(peer.as_ref().unwrap(), &[], None),
    ];
    let owner = |owner: usize| Owner {
        session: number,
        stream: owner as u64 + 1,
    };
    let mut model = Model {
        owes_owner: annotates,
        ..Model::default()
    };
    let mut peers_model = Model {
        bound: annotates.then_some(POOLED),
        ..Model::default()
    };
    let (mut plan, mut timely) = (Vec::new(), true);
    let mut began = Instant::now();
    for n in 0..=chance.u8(..STEPS) {
        let step = match n {
            0 if chance.u8(..4) > 0 => Step::Bind(Role::Stream, 0),
            _ => CHOICES[chance.usize(..CHOICES.len())],
        };
        if step.is_annotation() && !annotates {
            continue;
        }
        plan.push(step);
        match step {
            Step::Bind(role, number) => {
                annotation::bind(&socket, role, owner(number), "").unwrap();
            }
            Step::End(number) => {
                annotation::end(&socket, owner(number), 1).unwrap();
            }
            Step::EndSession => {
                annotation::end(&socket, owner(0).whole_session(), 1).unwrap();
            }
            Step::Send => send(&mut &socket, peer.as_mut()),
            Step::Finish => drop(socket.shutdown(Shutdown::Write)),
            Step::PeerFinishes => {
                if let Some(peer) = &peer {
                    let _ = peer.shutdown(Shutdown::Write);
                }
            }
            Step::PeerCloses => peer = None,
            Step::PeerResets => {
                if let Some(peer) = peer.take() {
                    set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
                }
            }
            Step::Wait => {
                timely &= began.elapsed() < AT_ONCE;
                thread::sleep(A_WAIT);
                began = Instant::now();
            }
        }
        model.live(step);
        if let (Some(step), Some(_)) = (step.of_peer(), &peer) {
            peers_model.live(step);
        }
    }
    if chance.bool() {
        drop((socket, copies, peer));
        drop(keeper);
    } else {
        drop(keeper);
        drop((socket, copies, peer));
    }
    timely &= began.elapsed() < AT_ONCE;
    let said = |model: &Model, name: &str| {
        let guilt = model.guilt.unwrap_or("innocent");
        let what = if timely { guilt } else { "unsure" };
        format!("life {what} {name} = {plan:?}")
    };
    let [name, peers_name] = &names;
    [said(&model, name), said(&peers_model, peers_name)]
}

/// The connection of a socket, as it sees it, and all who hold it, as "PID:FD".
fn name(socket: &TcpStream, copies: &[TcpStream], keeper: Option<&Keeper>) -> String {
    let ends = [socket.local_addr(), socket.peer_addr()].map(|end| end.unwrap().to_string());
    let own = std::process::id();
    let holders = copies.iter().chain([socket]);
    let holders = holders.map(|held| format!("{own}:{}", held.as_raw_fd()));
    let keeper = keeper.map(|keeper| format!("{}:1", keeper.0.id()));
    let words: Vec<String> = ends.into_iter().chain(holders).chain(keeper).collect();
    words.join(" ")
}

/// Another process that has a socket open, as its standard output, until this is dropped.
struct Keeper(Child);

impl Keeper {
    fn start(socket: &TcpStream) -> Self {
        let copy = OwnedFd::from(socket.try_clone().unwrap());
        let mut cat = Command::new("cat");
        Self(cat.stdin(Stdio::piped()).stdout(copy).spawn().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Makes a connection and says which end is looked at; the other one serves no request.
fn connection(chance: &mut Rng, annotates: bool) -> (TcpStream, Option<TcpStream>) {
    let nobody = |stream| Owner { session: 0, stream };
    let host: IpAddr = if chance.bool() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    };
    let listener = TcpListener::bind((host, 0)).unwrap();
    if annotates {
        annotation::bind(&listener, Role::Listener, nobody(1), "").unwrap();
    }
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = if chance.bool() {
        listener.accept().unwrap().0
    } else {
        // With no address asked for, nobody sees it before something happens to it, or the witness looks.
        rustix::net::accept_with(&listener, SocketFlags::CLOEXEC)
            .unwrap()
            .into()
    };
    let (socket, peer) = if chance.bool() {
        (dialed, accepted)
    } else {
        (accepted, dialed)
    };
    if annotates {
        annotation::bind(&peer, Role::Pool, nobody(2), "").unwrap();
    }
    (socket, Some(peer))
}

/// Sends a byte, and reads it where somebody is: a peer that closes with bytes unread resets the connection.
fn send(socket: &mut &TcpStream, peer: Option<&mut TcpStream>) {
    if socket.write_all(b"x").is_err() {
        return;
    }
    if let Some(peer) = peer {
        let _ = peer.read(&mut [0; 1]).unwrap();
    }
}

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let circumstances = [
        (Circumstance::Ordinary, ""),
        (Circumstance::TinyRing, "_though_records_are_lost"),
        (Circumstance::StoppedReader, "_though_the_reader_stops"),
    ];
    let mut trials = Vec::new();
    for deed in DEEDS {
        for (circumstance, suffix) in circumstances {
            let name = format!("{deed}_at_random_are_judged_by_the_rules{suffix}");
            let trial = Trial::test(name, move || {
                lives_are_judged_by_the_rules(deed, circumstance)
            });
            trials.push(trial.with_ignored_flag(skipped));
        }
    }
    trials
}

/// Under what the tracer has to judge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Circumstance {
    Ordinary,
    /// Most records are lost.
    TinyRing,
    /// It is stopped (SIGSTOP) again and again, for longer than a wait.
    StoppedReader,
}

impl Circumstance {
    /// The size of the ring in KiB.
    fn ring(self) -> &'static str {
        if self == Self::TinyRing { "4" } else { "4096" }
    }
}

/// Stops the tracer again and again until it ends.
fn stop_often(tracer: &mut Child) -> std::io::Result<()> {
    let pid = Pid::from_child(tracer);
    thread::sleep(BEFORE_A_STOP);
    while tracer.try_wait()?.is_none() {
        kill_process(pid, Signal::STOP)?;
        thread::sleep(A_STOP);
        kill_process(pid, Signal::CONT)?;
        thread::sleep(BEFORE_A_STOP);
    }
    Ok(())
}

/// What is known of a life: kind, and holders.
type Guilt = (String, BTreeSet<String>);

fn lives_are_judged_by_the_rules(deed: &str, circumstance: Circumstance) -> Result<(), Failed> {
    let seed = std::env::var("WATERTIGHT_TEST_SEED")
        .unwrap_or_else(|_| RandomState::new().hash_one(deed).to_string());
    eprintln!("{deed}: WATERTIGHT_TEST_SEED={seed}");
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("report.json");
    // Files, which take any amount without a reader.
    let (printed, said) = (
        directory.path().join("stdout"),
        directory.path().join("stderr"),
    );
    let mut tracer = Command::new(env!("CARGO_BIN_EXE_tracer"))
        .args(["run", "--grace", GRACE, "--ring", circumstance.ring()])
        .arg("--json")
        .arg(&json)
        .arg("--")
        .arg(std::env::current_exe()?)
        .args([COMMIT, deed])
        .env("WATERTIGHT_TEST_SEED", &seed)
        .stdin(Stdio::null())
        .stdout(File::create(&printed)?)
        .stderr(File::create(&said)?)
        .spawn()?;
    if circumstance == Circumstance::StoppedReader {
        stop_often(&mut tracer)?;
    }
    tracer.wait()?;
    let printed = std::fs::read_to_string(printed)?;
    let said = std::fs::read_to_string(said)?;
    let failed = |what: String| format!("seed {seed}: {what}\n{said}");
    let report = std::fs::read(json).map_err(|error| failed(error.to_string()))?;
    let report: Value = serde_json::from_slice(&report)?;
    expect(&report["verdict"], &"leak".into(), "verdict").map_err(failed)?;
    expect(&report["witness"]["agrees"], &true.into(), "agrees").map_err(failed)?;
    let lost = report["completeness"]["lost_events"] != 0;
    let loses = circumstance == Circumstance::TinyRing;
    expect(&lost, &loses, "records were lost").map_err(failed)?;
    let mut found = found(&report);
    let (mut timely, mut wrong) = (0, Vec::new());
    for life in printed
        .lines()
        .filter_map(|line| line.strip_prefix("life "))
    {
        let (words, plan) = life.split_once(" = ").ok_or("no plan")?;
        let words: Vec<&str> = words.split(' ').collect();
        let [what, local, remote, holders @ ..] = words.as_slice() else {
            return Err(format!("no life: {life}").into());
        };
        let guilt = found.remove(&format!("{local} {remote}"));
        if *what == "unsure" {
            continue;
        }
        timely += 1;
        let holders = holders.iter().copied().map(String::from).collect();
        let wanted = (*what != "innocent").then(|| ((*what).to_owned(), holders));
        if circumstance == Circumstance::StoppedReader {
            // Who had it while nobody looked is not known.
            let kind = |guilt: Option<Guilt>| guilt.map(|(kind, _)| kind);
            wrong.extend(expect(&kind(guilt), &kind(wanted), plan).err());
        } else {
            wrong.extend(expect(&guilt, &wanted, plan).err());
        }
    }
    wrong.extend(expect(&found, &BTreeMap::new(), "findings of nobody").err());
    if !wrong.is_empty() {
        return Err(failed(wrong.join("\n")).into());
    }
    if timely < TIMELY {
        return Err(failed(format!("{timely} lives were lived in time")).into());
    }
    Ok(())
}

/// Returns kind and holders of each finding that denies, by its connection.
fn found(report: &Value) -> BTreeMap<String, Guilt> {
    let denied = case::findings(report)
        .iter()
        .filter(|found| found["level"] == "deny");
    denied
        .map(|found| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let ends = &found["tuple"];
            let holders = found["holders"].as_array();
            let holders = holders
                .into_iter()
                .flatten()
                .map(|holder| format!("{}:{}", holder["pid"], holder["fd"]))
                .collect();
            let name = format!("{} {}", text(&ends["local"]), text(&ends["remote"]));
            (name, (text(&found["kind"]), holders))
        })
        .collect()
}
