//! The program under audit: makes all connections at once, takes random steps on each, and prints
//! for each end what the model predicts.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::net::SocketFlags;
use rustix::net::sockopt::set_socket_linger;
use tracer_abi::annotation::{self, Owner, Role};

use super::model::{CHOICES, Model, Step};

/// The programs under audit: with annotations and without.
pub(super) const PROGRAMS: [&str; 2] = ["random_programs", "random_programs_unannotated"];
/// How many connections there are at once.
pub(super) const COUNT: u64 = 240;

/// How many steps a connection takes at most, and how often a socket is copied.
const STEPS: u8 = 8;
const COPIES: u8 = 3;
/// One socket in this many is also held by another process.
const KEEPERS: u8 = 8;
/// Steps without a [`Step::Wait`] between them must take less than this, or the connection is not
/// judged: a busy machine may take longer than the grace.
const MAX_STEPS_TIME: Duration = Duration::from_millis(500);

/// Longer than the grace, and long enough for two walks of the witness: the second one reports a
/// socket that the first one met.
const WAIT: Duration = Duration::from_millis(3200);

/// Runs the program of this name; `false` if it is none of these.
pub(crate) fn run(program: &str) -> bool {
    let Some(kind) = PROGRAMS.iter().position(|known| *known == program) else {
        return false;
    };
    let annotates = kind == 0;
    let seed: u64 = std::env::var("WATERTIGHT_TEST_SEED")
        .unwrap()
        .parse()
        .unwrap();
    let connections: Vec<_> = (1..=COUNT)
        .map(|number| thread::spawn(move || run_connection(seed, number, annotates)))
        .collect();
    for connection in connections {
        println!("{}", connection.join().unwrap().join("\n"));
    }
    true
}

/// Takes random steps on a connection and returns a line for each of its ends: what must be found,
/// and what may be found instead where no walk looks at it.
fn run_connection(seed: u64, number: u64, annotates: bool) -> [String; 2] {
    // Similar seeds give similar numbers: mix them.
    let own = Rng::with_seed(number).u64(..);
    let mut rng = Rng::with_seed(seed ^ own);
    let (socket, mut peer) = connection(&mut rng, annotates);
    let copies: Vec<TcpStream> = (0..rng.u8(..COPIES))
        .map(|_| socket.try_clone().unwrap())
        .collect();
    let keeper = (rng.u8(..KEEPERS) == 0).then(|| Keeper::start(&socket));
    let names = [
        name(&socket, &copies, keeper.as_ref()),
        name(peer.as_ref().unwrap(), &[], None),
    ];
    let mut model = Model::unbound(annotates);
    let mut unwatched = model.unwatched();
    let mut peers_model = if annotates {
        Model::pooled()
    } else {
        Model::unbound(false)
    };
    let (mut steps, mut on_time) = (Vec::new(), true);
    let mut began = Instant::now();
    for n in 0..=rng.u8(..STEPS) {
        let step = match n {
            0 if rng.u8(..4) > 0 => Step::Bind(Role::Stream, 0),
            _ => CHOICES[rng.usize(..CHOICES.len())],
        };
        if step.is_annotation() && !annotates {
            continue;
        }
        steps.push(step);
        if step == Step::Wait {
            on_time &= began.elapsed() < MAX_STEPS_TIME;
            thread::sleep(WAIT);
            began = Instant::now();
        } else {
            take(step, number, &socket, &mut peer);
        }
        model.step(step);
        unwatched.step(step);
        if let (Some(step), Some(_)) = (step.of_peer(), &peer) {
            peers_model.step(step);
        }
    }
    if rng.bool() {
        drop((socket, copies, peer));
        drop(keeper);
    } else {
        drop(keeper);
        drop((socket, copies, peer));
    }
    on_time &= began.elapsed() < MAX_STEPS_TIME;
    let line = |model: Model, unwatched: Model, name: &str| {
        let [found, unwatched] = [model, unwatched].map(|it| it.released().unwrap_or("clean"));
        let expected = if on_time { found } else { "late" };
        format!("connection {expected} {unwatched} {name} = {steps:?}")
    };
    let [name, peers_name] = &names;
    [
        line(model, unwatched, name),
        line(peers_model, peers_model, peers_name),
    ]
}

/// Takes a step that is no wait.
fn take(step: Step, session: u64, mut socket: &TcpStream, peer: &mut Option<TcpStream>) {
    let owner = |owner: usize| Owner {
        session,
        stream: owner as u64 + 1,
    };
    match step {
        Step::Bind(role, number) => {
            annotation::bind(socket, role, owner(number), "").unwrap();
        }
        Step::End(number) => {
            annotation::end(socket, owner(number), 1).unwrap();
        }
        Step::EndSession => {
            annotation::end(socket, owner(0).whole_session(), 1).unwrap();
        }
        Step::Send => send(&mut socket, peer.as_mut()),
        Step::Finish => drop(socket.shutdown(Shutdown::Write)),
        Step::PeerFinishes => {
            if let Some(peer) = peer {
                let _ = peer.shutdown(Shutdown::Write);
            }
        }
        Step::PeerCloses => *peer = None,
        Step::PeerResets => {
            if let Some(peer) = peer.take() {
                set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
            }
        }
        Step::Wait => {}
    }
}

/// Returns both addresses of a socket and its holders, each as "PID:FD".
fn name(socket: &TcpStream, copies: &[TcpStream], keeper: Option<&Keeper>) -> String {
    let ends = [socket.local_addr(), socket.peer_addr()].map(|end| end.unwrap().to_string());
    let own = std::process::id();
    let holders = copies.iter().chain([socket]);
    let holders = holders.map(|held| format!("{own}:{}", held.as_raw_fd()));
    let keeper = keeper.map(|keeper| format!("{}:1", keeper.0.id()));
    let words: Vec<String> = ends.into_iter().chain(holders).chain(keeper).collect();
    words.join(" ")
}

/// Another process that holds a socket, as its standard output, until this is dropped.
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

/// Makes a connection. Returns the end under test and its peer, which serves no request.
fn connection(rng: &mut Rng, annotates: bool) -> (TcpStream, Option<TcpStream>) {
    let session_0 = |stream| Owner { session: 0, stream };
    let host: IpAddr = if rng.bool() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    };
    let listener = TcpListener::bind((host, 0)).unwrap();
    if annotates {
        annotation::bind(&listener, Role::Listener, session_0(1), "").unwrap();
    }
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = if rng.bool() {
        listener.accept().unwrap().0
    } else {
        // Without an address asked for, it is not seen until something happens to it or a walk
        // meets it.
        rustix::net::accept_with(&listener, SocketFlags::CLOEXEC)
            .unwrap()
            .into()
    };
    let (socket, peer) = if rng.bool() {
        (dialed, accepted)
    } else {
        (accepted, dialed)
    };
    if annotates {
        annotation::bind(&peer, Role::Pool, session_0(2), "").unwrap();
    }
    (socket, Some(peer))
}

/// Sends a byte and lets the peer read it: a peer that closes with unread bytes resets the
/// connection.
fn send(socket: &mut &TcpStream, peer: Option<&mut TcpStream>) {
    if socket.write_all(b"x").is_err() {
        return;
    }
    if let Some(peer) = peer {
        let _ = peer.read(&mut [0; 1]).unwrap();
    }
}
