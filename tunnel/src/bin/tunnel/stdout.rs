//! What the program tells scripts, on standard output.

use std::fmt::{Arguments, Display};
use std::io::Write as _;

use anyhow::Context as _;

/// Writes one line.
pub(crate) fn say(line: Arguments<'_>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// Writes where something listens.
pub(crate) fn announce(what: &str, address: impl Display) -> anyhow::Result<()> {
    say(format_args!("listening {what}={address}"))
}
