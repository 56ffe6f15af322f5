//! Many connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use tracer_abi::annotation::{self, Owner, Role};

use super::{TOO_LONG, again, bind, confess, end, owner, socket};

pub(super) fn commit(name: &str) {
    match name {
        "many_connections" => many_connections(false),
        "many_connections_one_leaked" => many_connections(true),
        "many_connections_looked_at" => many_connections_looked_at(),
        "many_look_at_parent" => many_look_at_parent(),
        "planted" => planted(),
        "many_held" => many_held(),
        "many_held_in_part" => many_held_in_part(),
        name => panic!("no deed is called {name:?}"),
    }
}

/// Binds before it connects: a SYN that finds a full backlog is sent again after a second.
fn dial(address: SocketAddr, stream: u64) -> TcpStream {
    let socket = socket();
    bind(&socket, stream);
    rustix::net::connect(&socket, &address).unwrap();
    socket.into()
}

fn many_connections(leak: bool) {
    connections(20_000, u64::from(leak));
}

/// A process that reads `/proc/PID/fd` has each file for a moment. Where that is the moment of the close, it releases the socket.
fn many_connections_looked_at() {
    let mut onlooker = again("many_look_at_parent").spawn().unwrap();
    many_connections(false);
    onlooker.kill().unwrap();
    onlooker.wait().unwrap();
}

fn many_look_at_parent() {
    let descriptors = format!("/proc/{}/fd", std::os::unix::process::parent_id());
    while let Ok(entries) = std::fs::read_dir(&descriptors) {
        for entry in entries.flatten() {
            // It may be gone by now.
            let _ = std::fs::metadata(entry.path());
        }
    }
}

/// The oracle: many clean requests with a few leaks planted among them. The number can be set, for a long run.
fn planted() {
    let wanted = std::env::var("WATERTIGHT_CONNECTIONS").ok();
    let count = wanted.map_or(100_000, |count| count.parse().unwrap());
    connections(count, 25);
}

/// Makes `count` connections one after the other, each with its own request, and keeps `leaks` of them.
fn connections(count: u64, leaks: u64) {
    // Several addresses: one has not enough ports for so many connections in TIME_WAIT.
    let listeners: Vec<TcpListener> = (1..=8)
        .map(|host| {
            let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, host), 0)).unwrap();
            rustix::net::listen(&listener, 4096).unwrap();
            annotation::bind(
                &listener,
                Role::Listener,
                Owner {
                    session: 0,
                    stream: 1,
                },
                "",
            )
            .unwrap();
            listener
        })
        .collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    let server = thread::spawn(move || {
        for (_, listener) in (0..count).zip(listeners.iter().cycle()) {
            let (mut accepted, _) = listener.accept().unwrap();
            annotation::bind(&accepted, Role::Pool, owner(u64::MAX), "").unwrap();
            accepted.read_exact(&mut [0; 1]).unwrap();
        }
    });
    let mut kept = Vec::new();
    for (n, address) in (0..count).zip(addresses.iter().cycle()) {
        let mut dialed = dial(*address, n + 1);
        dialed.write_all(b"x").unwrap();
        end(&dialed, n + 1);
        if leaks > 0 && n % (count / leaks) == count / leaks / 2 {
            confess(&dialed);
            kept.push(dialed);
        }
    }
    server.join().unwrap();
    if !kept.is_empty() {
        // The tracer has a backlog of news to read by now, on a machine that other cases keep busy.
        thread::sleep(3 * TOO_LONG);
    }
}

/// Processes that share 100,000 sockets: the descriptors of each fit into common limits.
const HOLDERS: usize = 8;
const CONNECTIONS_HELD: u64 = 6_250;
const READY: &str = "ready";
/// How often a holder looks whether it may go, and how many looks it takes before it gives up.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 6_000;

/// Leaves holders behind, all of whose sockets outlive their requests.
fn many_held() {
    let mut holders: Vec<Child> = (0..HOLDERS)
        .map(|_| {
            again("many_held_in_part")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for holder in &mut holders {
        let stdout = BufReader::new(holder.stdout.take().unwrap());
        for line in stdout.lines().map(Result::unwrap) {
            if line == READY {
                break;
            }
            println!("{line}");
        }
    }
}

fn many_held_in_part() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let listener = super::listener();
    let address = listener.local_addr().unwrap();
    let first = u64::from(std::process::id()) << 32;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_HELD {
        held.push(TcpStream::connect(address).unwrap());
        held.push(listener.accept().unwrap().0);
    }
    for (socket, stream) in held.iter().zip(first..) {
        bind(socket, stream);
    }
    for (socket, stream) in held.iter().zip(first..) {
        end(socket, stream);
        confess(socket);
    }
    println!("{READY}");
    // The tracer moves whoever is left out of its cgroup when all is said.
    let cgroup = || std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let audited = cgroup();
    for _ in 0..LOOKS {
        if cgroup() != audited {
            break;
        }
        thread::sleep(LOOK);
    }
}
