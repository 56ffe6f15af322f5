//! Processes that are not what they were: another program, another one with the same number, gone from the cgroup.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::thread;

use super::{TOO_LONG, again, connection, listener};

/// Where a program under audit finds the number that it should have.
const WANTED: &str = "WANTED_PID";
/// How often another process may take the number first.
const TRIES: usize = 200;

pub(super) fn commit(name: &str) {
    match name {
        "process_becomes_another_program" => {
            drop(connection());
            panic!("{}", again("process_keeps_one").exec());
        }
        "process_number_used_again" => number_used_again(),
        "process_annotates" => drop(listener()),
        "process_with_the_number" => {
            if std::env::var(WANTED).ok() != Some(std::process::id().to_string()) {
                std::process::exit(1);
            }
            keep_one();
        }
        "process_keeps_one" => keep_one(),
        "process_leaves" => {
            assert!(again("process_goes_out").status().unwrap().success());
        }
        "process_goes_out" => std::fs::write(outside().join("cgroup.procs"), "0").unwrap(),
        "process_goes_below" => {
            let below = own_cgroup().join("below");
            std::fs::create_dir(&below).unwrap();
            std::fs::write(below.join("cgroup.procs"), "0").unwrap();
            drop(connection());
        }
        name => panic!("no deed is called {name:?}"),
    }
}

/// A connection that nobody owns: no matter for a program that annotates nothing.
fn keep_one() {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let _dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _accepted = listener.accept().unwrap();
    thread::sleep(TOO_LONG);
}

fn number_used_again() {
    let mut annotating = again("process_annotates").spawn().unwrap();
    let number = annotating.id();
    assert!(annotating.wait().unwrap().success());
    for _ in 0..TRIES {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).unwrap();
        let mut other = again("process_with_the_number")
            .env(WANTED, number.to_string())
            .spawn()
            .unwrap();
        let same = other.id() == number;
        assert_eq!(other.wait().unwrap().success(), same);
        if same {
            return;
        }
    }
    panic!("the number {number} was always taken");
}

fn own_cgroup() -> PathBuf {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let below = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap();
    tracer_user::cgroup::mount().unwrap().join(below)
}

/// The cgroup above the audited one.
fn outside() -> PathBuf {
    own_cgroup().parent().unwrap().to_owned()
}
