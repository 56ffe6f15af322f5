//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{ArgMatches, Args, Parser, Subcommand};
use tracer_abi::limits::{RING_BYTES, SLOTS};
use tracer_core::ledger::{PileLimits, Timeouts};
use tracer_core::verdict::{Kind, Level, Levels};

use super::exit::ExitRule;
use crate::audit::Subject;
use crate::probes::Limits;
use crate::report::file::check_writable;
use crate::selftest::probe_child;
use crate::target::TargetError;
use crate::{audit, exec, stacks, target, thaw};

/// Shows, with evidence from the kernel, whether every socket of a program closed when its request
/// was over.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_STATUS)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

const EXIT_STATUS: &str = "\
Exit status: 0 clean (after `run`, the command's own status), 3 leak, 4 inconclusive,
5 cannot trace here, 2 usage, 1 the report cannot be written, 126 and 127 as a shell: the command
cannot be started. --exit-code tells a command's own 3, 4 and 5 from these.

Examples:
  sudo tracer run -- ./my-server --once
  sudo tracer run --for 60s --json report.json -- ./my-server
  sudo tracer attach --pid 4711 --for 5m
  sudo tracer attach --unit nginx --listen 127.0.0.1:9753
  sudo tracer top
  sudo tracer doctor";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs a command under audit, from its first instruction to its end, and gives the verdict.
    Run(Box<RunArgs>),
    /// Judges a program that runs already, with evidence, and leaves it running.
    ///
    /// Sockets from before are adopted: what happens to them counts from then on. The program is
    /// never stopped, frozen or signalled.
    Attach(Box<AttachArgs>),
    /// Shows who on this machine holds sockets that nobody uses. Attaches nothing, answers in about
    /// a second.
    ///
    /// Two looks at every open descriptor, a second apart: by process and target, the open sockets,
    /// those in CLOSE_WAIT, the dead ones, those on which no byte moved, and the growth. On a
    /// terminal it looks again every 2 seconds, until q or Ctrl-C.
    Top(TopArgs),
    /// Removes what `attach --pin DIR` has left there, which detaches the programs.
    Detach {
        /// The directory.
        #[arg(long, value_name = "DIR")]
        pin: PathBuf,
    },
    /// Checks whether this kernel, these privileges and mounts allow tracing, and says how to fix
    /// it.
    Doctor,
    #[command(hide = true, name = exec::ENTER)]
    Enter {
        cgroup: PathBuf,
        reply_fd: RawFd,
        program: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    #[command(hide = true, name = thaw::THAW)]
    Thaw { cgroup: PathBuf },
    #[command(hide = true, name = probe_child::SELFTEST)]
    SelfTest { cgroup: PathBuf },
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Gives the verdict after this time, while the command still runs, then ends the command.
    /// Default: when the command ends, or at Ctrl-C.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    pub(super) window: Option<Duration>,
    #[command(flatten)]
    pub(super) audit: AuditArgs,
    /// The command to run and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    #[command(flatten)]
    pub(super) target: TargetArgs,
    /// Gives the verdict after this time. Without it, guards until SIGTERM or Ctrl-C: each finding
    /// is a line of JSON on the standard output (schema watertight.finding/1) when its rule is
    /// broken, and once more when it is resolved.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    pub(super) window: Option<Duration>,
    /// Keeps the programs, and what they know, in this directory of a BPF file system: they go on
    /// when this process is killed, and the next one with the same options goes on with them.
    /// `tracer detach --pin DIR` removes them.
    #[arg(long, value_name = "DIR", conflicts_with = "window")]
    pub(super) pin: Option<PathBuf>,
    #[command(flatten)]
    pub(super) audit: AuditArgs,
}

#[derive(Debug, Args)]
#[command(after_help = TOP_EXAMPLES)]
pub(super) struct TopArgs {
    /// Prints the second look and ends. So does an output that is no terminal, without --json.
    #[arg(long)]
    pub(super) once: bool,
    /// Writes JSON to the standard output (schema watertight.top/1), one line for each look from
    /// the second on.
    #[arg(long)]
    pub(super) json: bool,
    /// Shows every process and target, also those with nothing suspicious.
    #[arg(long)]
    pub(super) all: bool,
}

const TOP_EXAMPLES: &str = "\
Exit status: 0, 5 cannot trace here, 1 the output cannot be written.

Examples:
  sudo tracer top
  sudo tracer top --once --json | jq '.rows[0]'";

/// What to attach to.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct TargetArgs {
    /// This process and what it starts. May be given several times.
    #[arg(long, value_name = "PID")]
    pub(super) pid: Vec<u32>,
    /// Every process of this cgroup and of those below it: its directory, or its path below the
    /// cgroup v2 mount.
    #[arg(long, value_name = "PATH")]
    pub(super) cgroup: Option<PathBuf>,
    /// This container, by the ID or name that Docker, containerd, CRI-O or podman gave it, or the
    /// pod with this UID and all its containers.
    #[arg(long, value_name = "ID")]
    pub(super) container: Option<String>,
    /// This systemd unit.
    #[arg(long, value_name = "NAME")]
    pub(super) unit: Option<String>,
}

/// What every audit takes.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// How long a socket may stay open after its request, its peer or its connection ended.
    #[arg(long, default_value = "1s", value_parser = parse_time)]
    pub(super) grace: Duration,
    /// How long bytes may wait to be sent or read, and a connect for its answer, without progress.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_time)]
    stuck_after: Duration,
    /// How long a connection may stay open without a byte.
    #[arg(long, default_value = "5m", value_parser = parse_time)]
    idle: Duration,
    /// How many more connections to one target than its baseline a process may open, use and keep
    /// although newer ones do their work.
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = parse_pile_up)]
    pile_up: usize,
    /// How long the oldest of such connections must have been kept until their number is the
    /// baseline. Common pools close idle connections after 30 to 90 s; use 3s for a short run.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = parse_time)]
    pile_up_after: Duration,
    /// Writes the report to this file, as JSON (schema watertight.audit/1); - is the standard
    /// output.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Serves the kernel's counts at http://ADDR/metrics while the audit runs. Requests must name
    /// an address, localhost or this machine's host name.
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<SocketAddr>,
    /// Findings of this kind make the verdict a leak. Denied by default: outlived-request,
    /// session-remnant, peer-closed, dead-socket, unowned and pile-up; warned of: stuck, idle
    /// and open-at-exit.
    #[arg(long, value_name = "KIND")]
    deny: Vec<Kind>,
    /// Findings of this kind are reported and do not change the verdict.
    #[arg(long, value_name = "KIND")]
    warn: Vec<Kind>,
    /// Findings of this kind are left out.
    #[arg(long, value_name = "KIND")]
    allow: Vec<Kind>,
    /// The size of the ring buffer for records, in KiB: a power of two, at least 4. When it is
    /// full, timestamps are lost; the verdict does not change.
    #[arg(long = "ring", value_name = "KIB", default_value_t = RING_BYTES >> 10, value_parser = parse_ring)]
    ring_kib: u32,
    /// How many places there are for what is known of sockets: a power of two, 232 bytes of kernel
    /// memory each. A socket that finds its place taken is followed as well, and costs the program
    /// about a microsecond more; the report counts them.
    #[arg(long, value_name = "NUMBER", default_value_t = SLOTS, value_parser = parse_places)]
    places: u32,
    /// Shows the user stack that opened the socket in each finding, with names if the program has
    /// symbols. Costs about 20 us for each socket and reads the program's files. x86-64 only.
    #[arg(long)]
    pub(super) stacks: bool,
    /// `verdict`: the exit status tells the verdict only (0, 3, 4, 5), not the command's own.
    /// `N=M`: M takes the place of 3, 4 or 5. May be given several times.
    #[arg(long, value_name = "RULE")]
    pub(super) exit_code: Vec<ExitRule>,
}

impl TargetArgs {
    /// Whether there may be such a thing again when it is gone: a PID is another process then.
    pub(super) fn may_return(&self) -> bool {
        self.pid.is_empty()
    }

    /// Looks up what is meant.
    ///
    /// # Errors
    ///
    /// When there is no such thing.
    pub(super) fn resolve(&self) -> std::result::Result<Subject, TargetError> {
        if let Some(path) = &self.cgroup {
            target::of_cgroup(path)
        } else if let Some(name) = &self.container {
            target::of_container(name)
        } else if let Some(name) = &self.unit {
            target::of_unit(name)
        } else {
            target::of_processes(&self.pid)
        }
    }
}

impl AuditArgs {
    /// Returns the settings of the audit; `matches` are those of this subcommand.
    pub(super) fn audit_settings(&self, matches: &ArgMatches) -> audit::Settings {
        audit::Settings {
            timeouts: Timeouts {
                grace_ns: nanoseconds(self.grace),
                stuck_ns: nanoseconds(self.stuck_after),
                idle_ns: nanoseconds(self.idle),
                piles: PileLimits {
                    after_ns: nanoseconds(self.pile_up_after),
                    growth: self.pile_up,
                },
            },
            levels: self.levels(matches),
            limits: Limits {
                ring_bytes: self.ring_kib << 10,
                places: self.places,
            },
            stacks: self.stacks,
            is_guard: false,
            pin: None,
        }
    }

    /// Returns the levels. As with lints, the last setting of a kind counts.
    fn levels(&self, matches: &ArgMatches) -> Levels {
        let mut settings: Vec<(usize, Kind, Level)> = Vec::new();
        for (name, kinds, level) in [
            ("deny", &self.deny, Level::Deny),
            ("warn", &self.warn, Level::Warn),
            ("allow", &self.allow, Level::Allow),
        ] {
            let indices = matches.indices_of(name).into_iter().flatten();
            settings.extend(
                indices
                    .zip(kinds)
                    .map(|(index, kind)| (index, *kind, level)),
            );
        }
        settings.sort_by_key(|(index, _, _)| *index);
        let mut levels = Levels::default();
        for (_, kind, level) in settings {
            levels.set(kind, level);
        }
        levels
    }

    /// Looks for mistakes before anything is loaded.
    ///
    /// # Errors
    ///
    /// When the command cannot be run, the report cannot be written, or an option has no effect
    /// here.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            stacks::SUPPORTED || !self.stacks,
            "--stacks works on x86-64 only: leave it out on this machine"
        );
        if let Some(path) = self.json.as_ref().filter(|path| path.as_os_str() != "-") {
            check_writable(path)
                .with_context(|| format!("cannot write the report {}", path.display()))?;
        }
        Ok(())
    }
}

/// Reads a time as humantime writes it, or a number of seconds.
fn parse_time(text: &str) -> std::result::Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a time as 1s, 300ms or 2m"))
}

fn parse_ring(text: &str) -> std::result::Result<u32, String> {
    parse_power_of_two(text, 4, 1 << 20)
}

fn parse_pile_up(text: &str) -> std::result::Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "must be a number, at least 1".to_owned())
}

fn parse_places(text: &str) -> std::result::Result<u32, String> {
    parse_power_of_two(text, 1, 1 << 22)
}

fn parse_power_of_two(text: &str, least: u32, most: u32) -> std::result::Result<u32, String> {
    text.parse()
        .ok()
        .filter(|number: &u32| number.is_power_of_two() && (least..=most).contains(number))
        .ok_or_else(|| format!("must be a power of two from {least} to {most}"))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
