//! The exit status of `tracer run`.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Access, access};
use tracer_core::verdict::Verdict;

use crate::exec::{CANNOT_EXECUTE, NOT_FOUND, NotStarted};

/// A mistake on the command line.
pub(super) const USAGE: u8 = 2;
/// A report could not be written, and nothing worse happened.
pub(super) const FAILED: u8 = 1;
pub(super) const LEAK: u8 = 3;
pub(super) const INCONCLUSIVE: u8 = 4;
pub(super) const CANNOT_TRACE: u8 = 5;

/// One `--exit-code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitRule {
    /// The status tells the verdict only: after `clean` it is 0, not the command's own.
    Verdict,
    /// A status of the tracer's own is another number.
    Move { from: u8, to: u8 },
}

impl FromStr for ExitRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "verdict" {
            return Ok(Self::Verdict);
        }
        let numbers = text.split_once('=');
        let numbers = numbers.and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        match numbers {
            Some((from @ (LEAK | INCONCLUSIVE | CANNOT_TRACE), to)) => Ok(Self::Move { from, to }),
            Some(_) | None => Err(
                "write verdict, or N=M with N 3 (leak), 4 (inconclusive) or 5 (cannot trace) and M \
                 from 0 to 255"
                    .to_owned(),
            ),
        }
    }
}

/// Returns the status for a verdict; `own` is the command's.
pub(super) fn of_verdict(
    verdict: Verdict,
    own: Option<i32>,
    is_written: bool,
    rules: &[ExitRule],
) -> u8 {
    match verdict {
        Verdict::Leak => of_tracer(LEAK, rules),
        Verdict::Inconclusive => of_tracer(INCONCLUSIVE, rules),
        Verdict::Clean if !is_written => FAILED,
        Verdict::Clean if rules.contains(&ExitRule::Verdict) => 0,
        Verdict::Clean => u8::try_from(own.unwrap_or(0)).unwrap_or(u8::MAX),
    }
}

/// Returns the status of a guard that was told to stop: 0, but with `--exit-code verdict` that of a
/// leak if a denied finding ever stood.
pub(super) fn of_guard(was_denied: bool, rules: &[ExitRule]) -> u8 {
    if was_denied && rules.contains(&ExitRule::Verdict) {
        of_tracer(LEAK, rules)
    } else {
        0
    }
}

/// Returns the exit status that replaces one of the tracer's own: the last rule about it counts.
pub(super) fn of_tracer(status: u8, rules: &[ExitRule]) -> u8 {
    let moved = rules.iter().rev().find_map(|rule| match rule {
        ExitRule::Move { from, to } if *from == status => Some(*to),
        ExitRule::Move { .. } | ExitRule::Verdict => None,
    });
    moved.unwrap_or(status)
}

/// Says that there is no such command.
fn not_found(name: impl Display) -> NotStarted {
    NotStarted {
        status: NOT_FOUND,
        message: format!(
            "there is no command {name}: give its path, or a name that is in PATH, after --"
        ),
    }
}

/// Says that what is there cannot be executed.
fn not_executable(name: impl Display) -> NotStarted {
    NotStarted {
        status: CANNOT_EXECUTE,
        message: format!(
            "{name} cannot be executed: it is a folder, or its permissions forbid it (chmod +x)"
        ),
    }
}

/// Looks a command up as execvp(3) does.
///
/// # Errors
///
/// [`NotStarted`] when there is nothing that can be executed.
pub(super) fn find(program: &Path) -> Result<PathBuf, NotStarted> {
    let candidates: Vec<PathBuf> = if program.components().count() > 1 {
        vec![program.to_owned()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(program))
            .collect()
    };
    let found: Vec<PathBuf> = candidates
        .into_iter()
        .filter(|path| path.exists())
        .collect();
    if found.is_empty() {
        return Err(not_found(program.display()));
    }
    found
        .into_iter()
        .find(|path| is_executable(path).is_ok())
        .ok_or_else(|| not_executable(program.display()))
}

fn is_executable(path: &Path) -> io::Result<()> {
    access(path, Access::EXEC_OK)?;
    if path.is_file() {
        Ok(())
    } else {
        Err(io::ErrorKind::IsADirectory.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_can_be_told_apart() {
        let rules: Vec<ExitRule> = ["3=30", "3=31", "5=0"].map(|it| it.parse().unwrap()).into();
        assert_eq!(of_verdict(Verdict::Leak, Some(0), true, &rules), 31);
        assert_eq!(of_verdict(Verdict::Inconclusive, None, true, &rules), 4);
        assert_eq!(of_tracer(CANNOT_TRACE, &rules), 0);
        assert_eq!(of_verdict(Verdict::Clean, Some(3), true, &rules), 3);
        assert_eq!(
            of_verdict(Verdict::Clean, Some(3), true, &[ExitRule::Verdict]),
            0
        );
        for wrong in ["", "3", "3=", "3=256", "0=3", "clean"] {
            assert!(wrong.parse::<ExitRule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_report_that_cannot_be_written_hides_no_leak() {
        assert_eq!(of_verdict(Verdict::Leak, Some(0), false, &[]), LEAK);
        assert_eq!(
            of_verdict(Verdict::Inconclusive, None, false, &[]),
            INCONCLUSIVE
        );
        assert_eq!(of_verdict(Verdict::Clean, Some(0), false, &[]), FAILED);
    }

    #[test]
    fn commands_are_found_as_a_shell_finds_them() {
        let plain = tempfile::NamedTempFile::new().unwrap();
        let status = |path: &str| find(Path::new(path)).map_err(|error| error.status).err();
        assert_eq!(status("sh"), None);
        assert_eq!(status("/bin/sh"), None);
        assert_eq!(status("no-such-command"), Some(127));
        assert_eq!(status("/no/such/command"), Some(127));
        assert_eq!(status(plain.path().to_str().unwrap()), Some(126));
        assert_eq!(status("/etc"), Some(126));
    }
}
