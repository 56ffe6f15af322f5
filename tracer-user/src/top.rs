//! `tracer top`: who on this machine holds sockets that nobody uses, with nothing attached.

mod json;
mod screen;
mod table;

use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use screen::Screen;
use thiserror::Error;
use tokio::time::sleep;
use tracer_core::top::{Look, Snapshot, Top, View};

use crate::event_loop::Signals;
use crate::probes::{Limits, LoadSettings, ProbeError, Probes, Scope};
use crate::process_names::ProcessNames;
use crate::{clock, witness};

/// The time between the first two looks.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The time between two further ones.
const PAUSE: Duration = Duration::from_secs(2);
/// How many rows are shown.
const ROWS: usize = 20;
/// How many rows are shown of all.
const ALL_ROWS: usize = 10_000;

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum TopError {
    /// The sockets cannot be looked at.
    #[error(transparent)]
    Probes(#[from] ProbeError),
    /// The output takes no text.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// A signal came before the second look.
    #[error("ended by a signal before the second look")]
    Interrupted,
}

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Ends after the second look.
    pub once: bool,
    /// JSON instead of a table.
    pub json: bool,
    /// Also what is not suspicious.
    pub all: bool,
}

/// The looks at the machine's sockets.
struct Looks {
    probes: Probes,
    top: Top,
}

impl Looks {
    /// Loads the witness, and takes the first look.
    fn start() -> Result<Self, ProbeError> {
        let probes = Probes::load(&LoadSettings {
            scope: Scope::Machine,
            cgroup_id: 0,
            grace_ns: u64::MAX,
            // Nothing is kept.
            limits: Limits {
                ring_bytes: 64 << 10,
                places: 1,
            },
            all_records: false,
            stacks: false,
            pin: None,
        })?;
        let mut looks = Self {
            probes,
            top: Top::default(),
        };
        looks.take()?;
        Ok(looks)
    }

    /// Takes a look. Returns what it shows next to those before it.
    fn take(&mut self) -> Result<Snapshot, ProbeError> {
        let mut look = Look::new(clock::now_ns());
        witness::each(self.probes.walk()?, |descriptor| look.add(&descriptor))
            .map_err(ProbeError::Witness)?;
        Ok(self.top.add(look, network_namespace))
    }
}

/// Returns the inode of a process's network namespace; 0 if it is gone.
fn network_namespace(pid: u32) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/ns/net")).map_or(0, |namespace| namespace.ino())
}

/// Shows the looks until `signals` or the user say so, or the second one with
/// [`Settings::once`].
///
/// # Errors
///
/// When the kernel refuses, the output takes no text, or a signal comes before the second look.
pub async fn run(settings: &Settings, signals: &mut Signals) -> Result<(), TopError> {
    let mut looks = Looks::start()?;
    let on_terminal = !settings.json && io::stdout().is_terminal();
    let once = settings.once || !settings.json && !on_terminal;
    let mut screen = if once || settings.json {
        None
    } else {
        Some(Screen::enter().map_err(TopError::Output)?)
    };
    let mut last = None;
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = signals.recv() => break,
            () = quit(screen.as_ref()) => break,
        }
        let snapshot = looks.take()?;
        match &mut screen {
            Some(screen) => {
                let text = table(&snapshot, settings, Some(screen.size()));
                screen.draw(&text).map_err(TopError::Output)?;
            }
            None if settings.json => write_json(&snapshot, settings)?,
            None => {}
        }
        last = Some(snapshot);
        if once {
            break;
        }
        pause = PAUSE;
    }
    // What was on the screen is gone with it.
    drop(screen);
    match last {
        Some(_) if settings.json => Ok(()),
        Some(snapshot) => print(&table(&snapshot, settings, None)),
        None if once => Err(TopError::Interrupted),
        None => Ok(()),
    }
}

async fn quit(screen: Option<&Screen>) {
    match screen {
        Some(screen) => screen.quit().await,
        None => std::future::pending().await,
    }
}

/// Returns the table; `size` is that of the screen that it must fit into.
fn table(snapshot: &Snapshot, settings: &Settings, size: Option<(usize, usize)>) -> String {
    let room = size.map(|(rows, _)| rows.saturating_sub(table::OTHER_LINES).max(1));
    let view = view(snapshot, settings, room.unwrap_or(usize::MAX));
    let columns = size.map_or(usize::MAX, |(_, columns)| columns);
    table::render(snapshot, &view, &mut ProcessNames::default(), columns)
}

fn view(snapshot: &Snapshot, settings: &Settings, room: usize) -> View {
    let limit = if settings.all { ALL_ROWS } else { ROWS };
    snapshot.view(settings.all, limit.min(room))
}

fn write_json(snapshot: &Snapshot, settings: &Settings) -> Result<(), TopError> {
    let view = view(snapshot, settings, usize::MAX);
    let mut stdout = io::stdout().lock();
    json::write(snapshot, &view, &mut ProcessNames::default(), &mut stdout)
        .and_then(|()| stdout.flush())
        .map_err(TopError::Output)
}

fn print(text: &str) -> Result<(), TopError> {
    let mut stdout = anstream::stdout();
    write!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(TopError::Output)
}

/// Returns the command that judges the process of the worst row.
fn next_command(view: &View) -> Option<String> {
    let worst = view.rows.first()?;
    (worst.pid != 0 && worst.counts.score() > 0)
        .then(|| format!("tracer attach --pid {} --for 5m", worst.pid))
}

/// Returns what a program is called: its `comm`, or the file name of its executable if the kernel
/// has cut that off.
fn program_name(comm: &str, executable: Option<&str>) -> String {
    const COMM_MAX: usize = 15;
    let file = executable.and_then(|path| path.rsplit('/').next());
    match file {
        Some(file) if comm.len() == COMM_MAX && file.starts_with(comm) => file.to_owned(),
        Some(_) | None => comm.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_kernel_cut_off_is_completed() {
        assert_eq!(
            program_name("remotedialer-se", Some("/opt/remotedialer-server")),
            "remotedialer-server"
        );
        assert_eq!(
            program_name("worker", Some("/usr/bin/worker-main")),
            "worker"
        );
        assert_eq!(program_name("remotedialer-se", None), "remotedialer-se");
    }
}
