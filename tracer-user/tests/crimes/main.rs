//! Audits programs that leak in a known way, which must be reported, and programs that only look as
//! if they leak, which must not.
//!
//! The program under audit is this same binary, started again by `tracer run`.

#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test without the standard harness, which clippy does not recognize as one"
)]

mod attached;
mod bounds;
mod case;
mod cases;
mod commands;
mod fixtures;
mod random_programs;
mod refusals;
mod reports;
mod stacks;
mod top;

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
    // Cases measure time, and each is a load for the others.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2).min(2));
    let skipped = case::must_skip();
    let cases = cases::all().into_iter().map(|case| {
        let skipped = case.is_skipped();
        Trial::test(case.name, move || case.check()).with_ignored_flag(skipped)
    });
    let trials = cases
        .chain(attached::trials(skipped))
        .chain(top::trials(skipped))
        .chain(commands::trials(skipped))
        .chain(reports::trials(skipped))
        .chain(refusals::trials(skipped))
        .chain(stacks::trials(skipped))
        .chain(bounds::trials(skipped))
        .chain(random_programs::trials(skipped))
        .collect();
    if skipped {
        eprintln!("skipped: these cases load eBPF programs and need root (sudo -E)");
    }
    libtest_mimic::run(&arguments, trials).exit();
}
