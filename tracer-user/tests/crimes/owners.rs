//! Owners that end, in whatever order, and sockets that change theirs or have none.

use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use tracer_abi::annotation::{self, Role};

use super::{GRACE, TOO_LONG, again, bind, confess, connection, end, listener, owner};

pub(super) fn commit(name: &str) {
    match name {
        "owner_bound_again" => bound_again(),
        "owner_bound_again_then_kept" => bound_again_then_kept(),
        "owner_bound_again_too_late" => bound_again_too_late(),
        "owner_session_remnant" => session_remnant(),
        "owner_unowned" => unowned(),
        "owner_unowned_kept_by_a_child" => unowned_kept_by_a_child(),
        "owner_bound_to_an_ended_owner" => bound_to_an_ended_owner(TOO_LONG),
        "owner_pooled_after_end" => pooled_after_end(),
        "owner_end_told_by_another_process" => end_told_by_another_process(),
        "owner_tell_end" => tell_end(),
        "owner_two_owners_kept" => two_owners_kept(),
        "owner_whole_session_kept" => whole_session_kept(),
        "owner_ended_twice" => ended_twice(),
        "owner_bound_to_an_ended_owner_and_released" => bound_to_an_ended_owner(Duration::ZERO),
        name => panic!("no deed is called {name:?}"),
    }
}

fn bound_again() {
    let (dialed, _accepted) = connection();
    for stream in 1..=3 {
        bind(&dialed, stream);
        end(&dialed, stream);
    }
    bind(&dialed, 4);
    // The requests before are over for longer than grace; the present one is not.
    thread::sleep(TOO_LONG);
    end(&dialed, 4);
}

fn bound_again_then_kept() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
    bind(&dialed, 2);
    end(&dialed, 2);
    confess(&dialed);
    thread::sleep(TOO_LONG);
}

fn bound_again_too_late() {
    let (dialed, accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
    confess(&dialed);
    thread::sleep(TOO_LONG);
    bind(&dialed, 2);
    drop((dialed, accepted));
}

fn session_remnant() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 0);
    confess(&dialed);
    thread::sleep(TOO_LONG);
}

fn unowned() {
    let (dialed, _accepted) = connection();
    confess(&dialed);
    thread::sleep(TOO_LONG);
}

/// Whoever releases it last never annotated. It happens within the time that the tracer is stopped for, if it is.
fn unowned_kept_by_a_child() {
    thread::sleep(TOO_LONG);
    let listener = listener();
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    bind(&dialed, 1);
    let (accepted, _) = listener.accept().unwrap();
    let mut child = again("hold_descriptor_0")
        .stdin(Stdio::from(OwnedFd::from(accepted)))
        .spawn()
        .unwrap();
    println!("guilty {} 0", child.id());
    child.wait().unwrap();
}

fn bound_to_an_ended_owner(stay: Duration) {
    let (dialed, accepted) = connection();
    annotation::bind(&dialed, Role::Pool, owner(9998), "").unwrap();
    end(&accepted, 5);
    thread::sleep(TOO_LONG);
    bind(&dialed, 5);
    if stay > GRACE {
        confess(&dialed);
    }
    thread::sleep(stay);
}

fn pooled_after_end() {
    let (dialed, accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
    annotation::bind(&dialed, Role::Pool, owner(9998), "").unwrap();
    drop(accepted);
    thread::sleep(TOO_LONG);
}

fn end_told_by_another_process() {
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    assert!(again("owner_tell_end").status().unwrap().success());
    confess(&dialed);
    thread::sleep(TOO_LONG);
}

fn tell_end() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    end(&socket, 1);
}

fn two_owners_kept() {
    let (a, _x) = connection();
    let (b, _y) = connection();
    for (socket, stream) in [(&a, 1), (&b, 2)] {
        bind(socket, stream);
        end(socket, stream);
        confess(socket);
    }
    thread::sleep(TOO_LONG);
}

fn whole_session_kept() {
    let sockets: Vec<_> = (1..=3)
        .map(|stream| {
            let (dialed, accepted) = connection();
            bind(&dialed, stream);
            confess(&dialed);
            (dialed, accepted)
        })
        .collect();
    end(&sockets[0].0, 0);
    thread::sleep(TOO_LONG);
}

fn ended_twice() {
    let (dialed, accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
    end(&accepted, 1);
}
