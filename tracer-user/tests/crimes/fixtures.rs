//! The programs under audit. They print "holder PID FD" for each descriptor that must be named as a holder.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{AddressFamily, SocketType};
use tracer_abi::annotation::{self, Heard, Owner, Role};

mod corners;

pub(crate) mod labels;
mod load;
mod namespaces;
mod owners;
mod piles;
mod processes;
mod unmodified;

/// Grace of the cases, and a time that is surely longer.
pub(super) const GRACE: Duration = Duration::from_millis(300);
pub(super) const TOO_LONG: Duration = Duration::from_millis(900);

/// Does the fixture of this name.
pub(crate) fn run(name: &str) {
    match name {
        "closes_in_time" => closes_in_time(),
        "fd_kept_after_end" => fd_kept_after_end(),
        "kept_by_a_dup" => kept_by_a_dup(),
        "kept_where_it_was_accepted" => kept_where_it_was_accepted(),
        "held_twice" => held_twice(),
        "kept_by_a_child" => kept_by_a_child(),
        "released_after_grace" => fd_kept_after_end(),
        "close_wait_left_open" => close_wait_left_open(TOO_LONG),
        "close_wait_kept_for_long" => close_wait_left_open(Duration::from_secs(30)),
        "refused_connect_left_open" => refused_connect_left_open(),
        "reset_left_open" => reset_left_open(),
        "hold_descriptor_0" => thread::sleep(TOO_LONG),
        "annotated_unix_socket" => annotated_unix_socket(),
        "never_connected" => never_connected(),
        "udp_kept_after_end" => udp_kept_after_end(),
        "replaced_by_dup2" => replaced_by_dup2(),
        "half_closed_and_finished" => half_closed_and_finished(),
        "accepted_without_asking_and_kept" => accepted_without_asking_and_kept(),
        "inherited_by_exec" => inherited_by_exec(),
        "has_one_from_outside" => {}
        "hold_inherited" => thread::sleep(TOO_LONG),
        "killed" => killed(),
        "open_and_wait" => open_and_wait(),
        "idle" => idle(),
        "busy" => busy(),
        "accepted_late" => accepted_late(),
        "never_accepted" => never_accepted(),
        "udp" => udp(),
        "ipv6" => ipv6(),
        "malformed_annotations" => malformed_annotations(),
        "open_at_exit" => open_at_exit(),
        "judged_while_running" => judged_while_running(),
        "left_behind" => left_behind(),
        "own_status" => std::process::exit(7),
        name if name.starts_with("corner_") => corners::run(name),
        name if name.starts_with("process_") => processes::run(name),
        name if name.starts_with("namespace_") => namespaces::run(name),
        name if name.starts_with("foreign_") => unmodified::run(name),
        name if name.starts_with("owner_") => owners::run(name),
        name if name.starts_with("pile_") => piles::run(name),
        name if name.starts_with("label_") => labels::run(name),
        name if name.starts_with("many_") || name == "planted" => load::run(name),
        name => corners::run(name),
    }
}

pub(super) fn owner(stream: u64) -> Owner {
    Owner {
        session: 77,
        stream,
    }
}

pub(super) fn bind(socket: &impl AsFd, stream: u64) {
    let heard = annotation::bind(socket, Role::Stream, owner(stream), "a crime").unwrap();
    assert_eq!(heard, Heard::Yes);
}

pub(super) fn end(socket: &impl AsFd, stream: u64) {
    assert_eq!(
        annotation::end(socket, owner(stream), 1).unwrap(),
        Heard::Yes
    );
}

pub(super) fn print_holder(socket: &impl AsRawFd) {
    println!("holder {} {}", std::process::id(), socket.as_raw_fd());
}

/// Both ends of a connection, the accepted one bound to the pool so that only the dialed one matters.
pub(super) fn connection() -> (TcpStream, TcpStream) {
    let listener = listener();
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    annotation::bind(&accepted, Role::Pool, owner(9999), "").unwrap();
    (dialed, accepted)
}

pub(super) fn listener() -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
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
}

pub(super) fn start_again(fixture: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([crate::case::FIXTURE, fixture]);
    command
}

fn closes_in_time() {
    let (mut dialed, mut accepted) = connection();
    bind(&dialed, 1);
    dialed.write_all(b"hello").unwrap();
    accepted.read_exact(&mut [0; 5]).unwrap();
    end(&dialed, 1);
}

fn fd_kept_after_end() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
    print_holder(&dialed);
    thread::sleep(TOO_LONG);
}

fn kept_where_it_was_accepted() {
    let listener = listener();
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    annotation::bind(&dialed, Role::Pool, owner(9999), "").unwrap();
    let (accepted, _) = listener.accept().unwrap();
    bind(&accepted, 1);
    end(&accepted, 1);
    print_holder(&accepted);
    thread::sleep(TOO_LONG);
}

fn kept_by_a_dup() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    let copy = fcntl_dupfd_cloexec(&dialed, 100).unwrap();
    end(&dialed, 1);
    drop(dialed);
    print_holder(&copy);
    thread::sleep(TOO_LONG);
}

fn held_twice() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    let copy = dialed.try_clone().unwrap();
    end(&dialed, 1);
    print_holder(&dialed);
    print_holder(&copy);
    thread::sleep(TOO_LONG);
}

fn kept_by_a_child() {
    let (dialed, accepted) = connection();
    bind(&dialed, 1);
    let mut child = start_again("hold_descriptor_0")
        .stdin(Stdio::from(OwnedFd::from(dialed.try_clone().unwrap())))
        .spawn()
        .unwrap();
    println!("holder {} 0", child.id());
    end(&dialed, 1);
    drop((dialed, accepted));
    child.wait().unwrap();
}

fn close_wait_left_open(kept: Duration) {
    // No annotation at all: the rule holds for any program.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    dialed.write_all(b"abc").unwrap();
    accepted.read_exact(&mut [0; 3]).unwrap();
    accepted.write_all(b"hello").unwrap();
    drop(accepted);
    print_holder(&dialed);
    thread::sleep(kept);
}

/// A TCP socket that is not connected.
fn socket() -> OwnedFd {
    rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()
}

fn refused_connect_left_open() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let socket = socket();
    rustix::net::connect(&socket, &address).unwrap_err();
    print_holder(&socket);
    thread::sleep(TOO_LONG);
}

fn reset_left_open() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    set_socket_linger(&accepted, Some(Duration::ZERO)).unwrap();
    drop(accepted);
    print_holder(&dialed);
    thread::sleep(TOO_LONG);
}

fn annotated_unix_socket() {
    let (kept, _peer) = UnixStream::pair().unwrap();
    bind(&kept, 1);
    end(&kept, 1);
    print_holder(&kept);
    thread::sleep(TOO_LONG);
}

fn never_connected() {
    let socket = socket();
    thread::sleep(TOO_LONG);
    drop(socket);
}

fn udp_kept_after_end() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    bind(&socket, 1);
    end(&socket, 1);
    print_holder(&socket);
    thread::sleep(TOO_LONG);
}

fn replaced_by_dup2() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
    let mut dialed = OwnedFd::from(dialed);
    let null = std::fs::File::open("/dev/null").unwrap();
    // The descriptor stays, the socket goes.
    rustix::io::dup2(&null, &mut dialed).unwrap();
    thread::sleep(TOO_LONG);
}

fn half_closed_and_finished() {
    let (mut dialed, mut accepted) = connection();
    bind(&dialed, 1);
    dialed.write_all(b"question").unwrap();
    dialed.shutdown(Shutdown::Write).unwrap();
    let mut question = Vec::new();
    accepted.read_to_end(&mut question).unwrap();
    accepted.write_all(&question).unwrap();
    drop(accepted);
    dialed.read_to_end(&mut Vec::new()).unwrap();
    end(&dialed, 1);
}

fn accepted_without_asking_and_kept() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    // With no address asked for, the first sight of it is the witness's.
    let accepted = rustix::net::accept(&listener).unwrap();
    print_holder(&accepted);
    thread::sleep(2 * TOO_LONG);
}

fn inherited_by_exec() {
    let (dialed, accepted) = connection();
    bind(&dialed, 1);
    rustix::io::fcntl_setfd(&dialed, rustix::io::FdFlags::empty()).unwrap();
    let mut child = start_again("hold_inherited").spawn().unwrap();
    println!("holder {} {}", child.id(), dialed.as_raw_fd());
    end(&dialed, 1);
    drop((dialed, accepted));
    child.wait().unwrap();
}

fn killed() {
    let mut child = start_again("open_and_wait")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 1])
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    thread::sleep(TOO_LONG);
}

fn open_and_wait() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    println!("open");
    thread::sleep(Duration::from_secs(60));
}

fn idle() {
    let (dialed, accepted) = connection();
    print_holder(&dialed);
    print_holder(&accepted);
    annotation::bind(&dialed, Role::Pool, owner(9998), "").unwrap();
    thread::sleep(2 * TOO_LONG);
}

fn busy() {
    let (mut dialed, mut accepted) = connection();
    annotation::bind(&dialed, Role::Pool, owner(9998), "").unwrap();
    for _ in 0..18 {
        dialed.write_all(b"x").unwrap();
        accepted.read_exact(&mut [0; 1]).unwrap();
        accepted.write_all(b"y").unwrap();
        dialed.read_exact(&mut [0; 1]).unwrap();
        thread::sleep(TOO_LONG / 9);
    }
}

fn accepted_late() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    thread::sleep(TOO_LONG);
    // In the backlog it was in CLOSE_WAIT all the time, but nobody had a descriptor to release.
    drop(listener.accept().unwrap());
}

fn never_accepted() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for _ in 0..5 {
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    }
    thread::sleep(TOO_LONG);
}

fn udp() {
    let a = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let b = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    bind(&a, 1);
    a.send_to(b"x", b.local_addr().unwrap()).unwrap();
    b.recv(&mut [0; 1]).unwrap();
    end(&a, 1);
    drop(a);
    thread::sleep(TOO_LONG);
}

fn ipv6() {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    bind(&dialed, 1);
    annotation::bind(&accepted, Role::Pool, owner(9999), "").unwrap();
    end(&dialed, 1);
    dialed.shutdown(Shutdown::Both).unwrap();
}

fn malformed_annotations() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let header = |version: u16, detail: u16, reserved: u32| {
        let header = annotation::Header {
            version,
            detail,
            reserved,
            owner: owner(1),
        };
        header.to_bytes().to_vec()
    };
    let with_label = |label: &[u8]| [header(1, 3, 0), label.to_vec()].concat();
    let refused = [
        (annotation::BIND, header(2, 3, 0)),
        (annotation::BIND, header(1, 5, 0)),
        (annotation::BIND, header(1, 3, 1)),
        (annotation::BIND, header(1, 3, 0)[..23].to_vec()),
        (annotation::BIND, with_label(&[b'x'; 65])),
        (annotation::BIND, with_label(b"caf\xe9")),
        (annotation::END, with_label(b"x")),
        (
            annotation::END,
            annotation::Header {
                version: 1,
                ..annotation::Header::default()
            }
            .to_bytes()
            .to_vec(),
        ),
        (3, header(1, 3, 0)),
    ];
    for (name, value) in refused {
        annotation::annotate(&socket, name, &value).unwrap_err();
    }
    annotation::annotate(
        &socket,
        annotation::BIND,
        &with_label("caf\u{e9}".as_bytes()),
    )
    .unwrap();
    annotation::annotate(&socket, annotation::BIND, &with_label(&[b'x'; 64])).unwrap();
    annotation::annotate(&socket, annotation::END, &header(1, 65535, 0)).unwrap();
}

fn open_at_exit() {
    let (dialed, accepted) = connection();
    bind(&dialed, 1);
    drop(accepted);
    std::mem::forget(dialed);
}

fn judged_while_running() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
    print_holder(&dialed);
    thread::sleep(Duration::from_secs(60));
}

fn left_behind() {
    let (dialed, accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
    #[expect(
        clippy::zombie_processes,
        reason = "it outlives this process: that is the fixture"
    )]
    let child = start_again("hold_descriptor_0")
        .stdin(Stdio::from(OwnedFd::from(dialed)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(accepted);
    println!("holder {} 0", child.id());
}
