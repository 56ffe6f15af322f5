//! The programs under audit. They print "holder PID FD" for each descriptor that must be named as a
//! holder.

mod families;
mod holders;
pub(crate) mod labels;
mod languages;
mod load;
mod mptcp;
mod namespaces;
mod owners;
mod passing;
mod piles;
mod processes;
mod real;
mod reuse;
mod sockets;
mod stuck;
mod tcp;
pub(crate) mod top;
mod unmodified;
mod visitors;

/// Runs the program of this name.
pub(crate) fn run(name: &str) {
    let programs = [
        families::run,
        holders::run,
        labels::run,
        languages::run,
        load::run,
        mptcp::run,
        namespaces::run,
        owners::run,
        passing::run,
        piles::run,
        processes::run,
        real::run,
        reuse::run,
        stuck::run,
        tcp::run,
        top::run,
        unmodified::run,
    ];
    assert!(
        programs.iter().any(|run| run(name)),
        "no fixture is called {name:?}"
    );
}
