//! The unit tests of the pure cores under miri, which finds undefined behaviour: the cores have no
//! `unsafe`, what they depend on has.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::shell::{self, root};

/// Tests read files and the clock; proptest does that, too.
const FLAGS: &str = "-Zmiri-disable-isolation";

/// Miri is some hundred times slower than the machine.
const PROPTEST_CASES: &str = "2";

/// Runs the unit tests of these packages.
pub(super) fn run(packages: &[&str]) -> Result<()> {
    ensure!(
        shell::read(nightly_cargo().args(["miri", "--version"])).is_ok(),
        "miri is missing: rustup toolchain install nightly --component miri --component rust-src"
    );
    for package in packages {
        let mut command = nightly_cargo();
        command.args(["miri", "test", "--locked", "--lib", "--package", package]);
        command.env("MIRIFLAGS", FLAGS);
        command.env("PROPTEST_CASES", PROPTEST_CASES);
        shell::run(&mut command)?;
    }
    Ok(())
}

/// Miri is a part of nightly only.
fn nightly_cargo() -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo"])
        .current_dir(root());
    command
}
