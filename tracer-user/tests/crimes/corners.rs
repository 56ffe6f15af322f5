//! The corners: MPTCP, reconnects, descriptors that are passed on, io_uring.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, ipproto,
};
use tracer_abi::annotation::{self, Owner, Role};

use super::{TOO_LONG, again, bind, confess, connection, end, owner};

pub(super) fn commit(name: &str) {
    match name {
        "mptcp" => mptcp(),
        "mptcp_kept" => mptcp_kept(),
        "mptcp_listener_with_plain_clients" => mptcp_listener_with_plain_clients(),
        "connected_again" => connected_again(),
        "corner_disconnected" => disconnected(),
        "corner_after_forgotten_backlogs" => after_forgotten_backlogs(),
        "corner_begun_anew_too_late" => begun_anew_too_late(),
        "passed_and_kept" => passed_and_kept(),
        "receive_and_hold" => receive_and_hold(),
        "passed_in_flight" => passed_in_flight(),
        "io_uring_kept" => io_uring(true),
        "io_uring_released" => io_uring(false),
        "corner_accepted_late_without_asking" => accepted_late_without_asking(),
        "corner_pooled_peer_done" => pooled_peer_done(),
        "corner_connected_to_itself" => connected_to_itself(),
        "corner_listening_again" => listening_again(),
        "corner_no_route_kept" => no_route(false),
        "corner_no_route_then_connected" => no_route(true),
        "corner_mptcp_accepted_and_open" => {
            mptcp_accepted(|listener| drop_address(listener.accept()))
        }
        "corner_mptcp_accepted_unseen_and_open" => {
            mptcp_accepted(|listener| rustix::net::accept(listener).unwrap().into())
        }
        "corner_close_wait_left_in_time" => close_wait_left(Duration::ZERO),
        "corner_close_wait_left_too_late" => close_wait_left(TOO_LONG),
        "corner_closed_by_both" => closed_by_both(),
        "corner_reset_after_own_finish" => reset_after_own_finish(),
        "corner_held_by_many" => held_by_many(),
        name => panic!("no deed is called {name:?}"),
    }
}

fn mptcp_socket() -> OwnedFd {
    rustix::net::socket(
        AddressFamily::INET,
        SocketType::STREAM,
        Some(ipproto::MPTCP),
    )
    .unwrap()
}

/// An MPTCP listener, as Go makes them by default, and its address.
fn mptcp_listener() -> (TcpListener, SocketAddr) {
    let socket = mptcp_socket();
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    rustix::net::listen(&socket, 16).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Both ends of an MPTCP connection. The accepted one has its listener's cookie.
fn mptcp_connection() -> (TcpStream, TcpStream) {
    let (listener, address) = mptcp_listener();
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
    let dialed = mptcp_socket();
    rustix::net::connect(&dialed, &address).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    (TcpStream::from(dialed), accepted)
}

fn mptcp() {
    let (mut dialed, mut accepted) = mptcp_connection();
    bind(&dialed, 1);
    bind(&accepted, 2);
    dialed.write_all(b"hello").unwrap();
    accepted.read_exact(&mut [0; 5]).unwrap();
    end(&dialed, 1);
    end(&accepted, 2);
}

fn mptcp_kept() {
    let (dialed, accepted) = mptcp_connection();
    bind(&dialed, 1);
    bind(&accepted, 2);
    end(&accepted, 2);
    confess(&accepted);
    thread::sleep(TOO_LONG);
}

fn mptcp_listener_with_plain_clients() {
    let (listener, address) = mptcp_listener();
    for _ in 0..5 {
        let mut dialed = TcpStream::connect(address).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        dialed.write_all(b"x").unwrap();
        accepted.read_exact(&mut [0; 1]).unwrap();
    }
}

/// One socket, three connections: each is dead for the tracer's eyes until the next begins.
fn disconnected() {
    let listener = super::listener();
    let socket = super::socket();
    rustix::net::connect(&socket, &listener.local_addr().unwrap()).unwrap();
    rustix::net::send(&socket, b"four", SendFlags::empty()).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.read_exact(&mut [0; 4]).unwrap();
    rustix::net::connect_unspec(&socket).unwrap();
    drop(accepted);
    confess(&socket);
    thread::sleep(TOO_LONG);
}

fn connected_again() {
    let listener = super::listener();
    let address = listener.local_addr().unwrap();
    let socket = super::socket();
    bind(&socket, 1);
    for _ in 0..3 {
        rustix::net::connect(&socket, &address).unwrap();
        drop(listener.accept().unwrap());
        rustix::net::connect_unspec(&socket).unwrap();
    }
    rustix::net::connect(&socket, &address).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    annotation::bind(&accepted, Role::Pool, owner(9999), "").unwrap();
    thread::sleep(TOO_LONG);
    end(&socket, 1);
}

/// Connections that nobody accepts, whose end no hook sees; then others, at the same addresses in the kernel.
fn after_forgotten_backlogs() {
    for _ in 0..50 {
        let listener = super::listener();
        let address = listener.local_addr().unwrap();
        let dialed: Vec<TcpStream> = (0..20)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        drop(listener);
        drop(dialed);
    }
    let mut connections: Vec<_> = (0..100).map(|_| connection()).collect();
    for (n, (dialed, accepted)) in (1..).zip(&connections) {
        bind(dialed, n);
        end(dialed, n);
        bind(accepted, 1000 + n);
    }
    connections.truncate(10);
    for (dialed, _) in &connections {
        confess(dialed);
    }
    thread::sleep(TOO_LONG);
}

/// Three sockets that begin anew within the time that the tracer is stopped for, if it is.
fn begun_anew_too_late() {
    thread::sleep(TOO_LONG);
    let listener = super::listener();
    let address = listener.local_addr().unwrap();
    let sockets = [(); 3].map(|()| {
        let socket = super::socket();
        rustix::net::connect(&socket, &address).unwrap();
        drop(listener.accept().unwrap());
        confess(&socket);
        socket
    });
    let [peer_closed, dead, listening] = &sockets;
    rustix::net::connect_unspec(dead).unwrap();
    rustix::net::connect_unspec(listening).unwrap();
    thread::sleep(TOO_LONG);
    rustix::net::connect_unspec(peer_closed).unwrap();
    for socket in [peer_closed, dead] {
        rustix::net::connect(socket, &address).unwrap();
        drop(listener.accept().unwrap());
    }
    rustix::net::listen(listening, 1).unwrap();
}

fn pass(over: &UnixStream, socket: &impl AsFd) {
    let descriptors = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    rustix::net::sendmsg(
        over,
        &[IoSlice::new(b"x")],
        &mut ancillary,
        SendFlags::empty(),
    )
    .unwrap();
}

fn passed_in_flight() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    let (here, _there) = UnixStream::pair().unwrap();
    pass(&here, &dialed);
    drop(dialed);
    thread::sleep(Duration::from_secs(60));
}

fn passed_and_kept() {
    let (dialed, accepted) = connection();
    bind(&dialed, 1);
    let (here, there) = UnixStream::pair().unwrap();
    let mut child = again("receive_and_hold")
        .stdin(Stdio::from(OwnedFd::from(there)))
        .spawn()
        .unwrap();
    pass(&here, &dialed);
    end(&dialed, 1);
    drop((dialed, accepted));
    child.wait().unwrap();
}

fn receive_and_hold() {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let stdin = std::io::stdin();
    rustix::net::recvmsg(
        &stdin,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::empty(),
    )
    .unwrap();
    let received: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    println!("guilty {} {}", std::process::id(), received[0].as_raw_fd());
    thread::sleep(TOO_LONG);
}

/// A socket that lives in io_uring's own table and never has a descriptor.
fn io_uring(keep: bool) {
    use io_uring::{IoUring, opcode, types};
    let mut ring = IoUring::new(8).unwrap();
    ring.submitter().register_files_sparse(4).unwrap();
    let open = opcode::Socket::new(2, 1, 0)
        .file_index(Some(
            types::DestinationSlot::try_from_slot_target(0).unwrap(),
        ))
        .build();
    #[expect(unsafe_code, reason = "entries of io_uring are given by address")]
    // SAFETY: the entry names no memory.
    unsafe { ring.submission().push(&open) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    assert_eq!(ring.completion().next().unwrap().result(), 0);
    if keep {
        thread::sleep(Duration::from_secs(60));
    }
    ring.submitter().unregister_files().unwrap();
}

/// The peer was done long before; the kernel has no hook for such an accept.
fn accepted_late_without_asking() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    thread::sleep(TOO_LONG);
    let accepted = rustix::net::accept(&listener).unwrap();
    confess(&accepted);
    thread::sleep(2 * TOO_LONG);
}

/// The race that every keep-alive client knows: the upstream finished while its connection was pooled.
fn pooled_peer_done() {
    let (dialed, accepted) = connection();
    annotation::bind(&dialed, Role::Pool, owner(1), "").unwrap();
    drop(accepted);
    thread::sleep(TOO_LONG);
    bind(&dialed, 2);
    end(&dialed, 2);
}

/// Both ends of the connection are one socket (simultaneous open).
fn connected_to_itself() {
    let socket = super::socket();
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let socket = TcpStream::from(socket);
    let address = socket.local_addr().unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    bind(&socket, 1);
    end(&socket, 1);
}

fn listening_again() {
    let socket = super::socket();
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    thread::sleep(TOO_LONG);
}

/// TCP has no broadcast: the connect fails before a SYN is sent.
fn no_route(connect_then: bool) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let socket = super::socket();
    let failed = rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::BROADCAST, 9));
    assert_eq!(failed, Err(Errno::NETUNREACH));
    if connect_then {
        rustix::net::connect(&socket, &listener.local_addr().unwrap()).unwrap();
    } else {
        confess(&socket);
    }
    thread::sleep(TOO_LONG);
}

fn drop_address(accepted: std::io::Result<(TcpStream, SocketAddr)>) -> TcpStream {
    accepted.unwrap().0
}

/// Nobody annotates, and no hook knows of the accepted socket before it is asked for or met.
fn mptcp_accepted(accept: fn(&TcpListener) -> TcpStream) {
    let (listener, address) = mptcp_listener();
    let dialed = mptcp_socket();
    rustix::net::connect(&dialed, &address).unwrap();
    let _accepted = accept(&listener);
    thread::sleep(Duration::from_secs(60));
}

/// Both ends of a connection that nobody annotates, with three bytes read one way and five the other.
fn plain_connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    dialed.write_all(b"abc").unwrap();
    accepted.read_exact(&mut [0; 3]).unwrap();
    accepted.write_all(b"hello").unwrap();
    dialed.read_exact(&mut [0; 5]).unwrap();
    (dialed, accepted)
}

/// The peer finishes first, then this side, and the descriptor stays.
fn close_wait_left(after: Duration) {
    let (mut dialed, accepted) = plain_connection();
    drop(accepted);
    assert_eq!(dialed.read(&mut [0; 1]).unwrap(), 0);
    confess(&dialed);
    thread::sleep(after);
    dialed.shutdown(Shutdown::Write).unwrap();
    thread::sleep(TOO_LONG);
}

/// This side finishes first, then the peer, and the descriptor stays.
fn closed_by_both() {
    let (mut dialed, mut accepted) = plain_connection();
    dialed.shutdown(Shutdown::Write).unwrap();
    assert_eq!(accepted.read(&mut [0; 1]).unwrap(), 0);
    drop(accepted);
    assert_eq!(dialed.read(&mut [0; 1]).unwrap(), 0);
    confess(&dialed);
    thread::sleep(TOO_LONG);
}

/// This side finishes, the peer resets: no FIN ever came.
fn reset_after_own_finish() {
    let (dialed, mut accepted) = plain_connection();
    dialed.shutdown(Shutdown::Write).unwrap();
    assert_eq!(accepted.read(&mut [0; 1]).unwrap(), 0);
    set_socket_linger(&accepted, Some(Duration::ZERO)).unwrap();
    drop(accepted);
    confess(&dialed);
    thread::sleep(TOO_LONG);
}

fn held_by_many() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    let copies: Vec<OwnedFd> = (0..100)
        .map(|_| fcntl_dupfd_cloexec(&dialed, 100).unwrap())
        .collect();
    end(&dialed, 1);
    confess(&dialed);
    copies.iter().for_each(confess);
    thread::sleep(TOO_LONG);
}
