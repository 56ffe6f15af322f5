//! Programs in namespaces of their own: their sockets are seen, and their holders named by the tracer's numbers.

use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use super::{TOO_LONG, bind, connection, end};

pub(super) fn commit(name: &str) {
    match name {
        "namespace_pid_kept" => unshared("--pid", "namespace_keep"),
        "namespace_net_kept" => unshared("--net", "namespace_keep"),
        "namespace_net_released" => unshared("--net", "namespace_release"),
        "namespace_keep" => keep(),
        "namespace_release" => release(),
        name => panic!("no deed is called {name:?}"),
    }
}

fn unshared(namespace: &str, deed: &str) {
    let status = Command::new("unshare")
        .args([namespace, "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args([crate::case::COMMIT, deed])
        .status()
        .unwrap();
    assert!(status.success());
}

/// A new network namespace has its loopback down; in an old one it is up.
fn bring_loopback_up() {
    let status = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(status.unwrap().success());
}

fn keep() {
    bring_loopback_up();
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
    // /proc is the tracer's: there this process has its number outside.
    let pid = std::fs::read_link("/proc/self").unwrap();
    println!("guilty {} {}", pid.display(), dialed.as_raw_fd());
    thread::sleep(TOO_LONG);
}

fn release() {
    bring_loopback_up();
    let (dialed, _accepted) = connection();
    bind(&dialed, 1);
    end(&dialed, 1);
}
