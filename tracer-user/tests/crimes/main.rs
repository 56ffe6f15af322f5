//! The auditor audited: programs that leak in a known way must be convicted, and ones that only look guilty must not.
//!
//! Each case is this same binary, started again by `tracer run` as the program under audit.

#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests look at the clock of the world, and this one lacks the harness that would say that it is one"
)]

mod bounds;
mod case;
mod cases;
mod commands;
mod fixtures;
mod random_programs;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(case::FIXTURE) {
        let fixture = arguments.next().unwrap_or_default();
        if !random_programs::run(&fixture) {
            fixtures::run(&fixture);
        }
        return;
    }
    let mut arguments = Arguments::from_args();
    // Cases measure times against each other's load.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2).min(2));
    let skipped = case::must_skip();
    let cases = cases::all().into_iter().map(|case| {
        let skipped = case.is_skipped();
        Trial::test(case.name, move || case.judge()).with_ignored_flag(skipped)
    });
    let trials = cases
        .chain(commands::trials(skipped))
        .chain(bounds::trials(skipped))
        .chain(random_programs::trials(skipped))
        .collect();
    if skipped {
        eprintln!("skipped: these cases load eBPF programs and need root (sudo -E)");
    }
    libtest_mimic::run(&arguments, trials).exit();
}
