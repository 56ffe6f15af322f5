//! The program under audit: it lives all lives at once, and says of each how it was lived and what the rules say.

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
use super::{COUNT, DEEDS};

/// How many steps a life has at most, and how often a socket is copied.
const STEPS: u8 = 8;
const COPIES: u8 = 3;
/// One socket in so many is held by another process too.
const KEEPERS: u8 = 8;
/// What happens without a [`Step::Wait`] between is together within this time, or nothing is said of that life: a busy machine may
/// take longer than the grace.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Longer than the grace, and long enough for the witness to look, whose second look convicts where the first one met the socket.
const A_WAIT: Duration = Duration::from_millis(3200);
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
    let mut model = Model::unbound(annotates);
    let mut peers_model = if annotates {
        Model::pooled()
    } else {
        Model::unbound(false)
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
        let guilt = model.guilt().unwrap_or("innocent");
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
