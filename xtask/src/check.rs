//! `cargo xtask check`: formatting, lints, and that the pure cores stand alone.

use anyhow::Result;

use crate::shell::{self, cargo};

pub(crate) fn run() -> Result<()> {
    run_all(&[
        &["fmt", "--all", "--check"],
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "--deny",
            "warnings",
        ],
        // The cores compile without tokio, aya, a clock or a socket: their features bring nothing else.
        &[
            "clippy",
            "--package",
            "tunnel",
            "--lib",
            "--no-default-features",
            "--locked",
            "--",
            "--deny",
            "warnings",
        ],
    ])?;
    // The wire format is part of the library's documentation.
    let mut doc = cargo();
    doc.args([
        "doc",
        "--package",
        "tunnel",
        "--lib",
        "--no-deps",
        "--locked",
    ]);
    shell::run(doc.env("RUSTDOCFLAGS", "--deny warnings"))
}

fn run_all(chores: &[&[&str]]) -> Result<()> {
    chores
        .iter()
        .try_for_each(|arguments| shell::run(cargo().args(*arguments)))
}
