//! Many connections.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use tracer_abi::annotation::{self, Owner, Role};

use super::{TOO_LONG, bind, confess, end, owner, socket};

pub(super) fn commit(name: &str) {
    match name {
        "many_connections" => many_connections(false),
        "many_connections_one_leaked" => many_connections(true),
        "planted" => planted(),
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
