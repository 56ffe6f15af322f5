//! The command `tracer`.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracer_abi::limits::{PLACES, RING_BYTES};
use tracer_core::ledger::Timeouts;
use tracer_core::report::Report;
use tracer_core::verdict::{Kind, Level, Levels, Verdict};
use tracer_user::audit::{self, Audit};
use tracer_user::metrics::Endpoint;
use tracer_user::probes::Limits;
use tracer_user::report::{json, text};
use tracer_user::{doctor, exec, run, stacks};

/// Says with evidence from the kernel whether every socket of a program closed when the request it served was over.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "\
Exit status: 0 clean (after `run`, the command's own status), 3 leak, 4 inconclusive,
5 cannot trace here, 2 usage.

Examples:
  sudo tracer run -- ./my-server --once
  sudo tracer run --for 60s --json report.json -- ./my-server
  sudo tracer doctor";

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a command under audit, from its first instruction to its end, and gives a verdict.
    Run(RunArgs),
    /// Tells what this kernel, these privileges and mounts allow, line by line, with the fix.
    Doctor,
    #[command(hide = true, name = exec::ENTER)]
    Enter {
        cgroup: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    #[command(hide = true, name = exec::SELFTEST)]
    SelfTest { cgroup: PathBuf },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// How long a socket may stay open after its request, its peer or its connection ended.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// How long a connection may stay open without a byte.
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    idle: Duration,
    /// Judges after this time, while the command still runs, then ends it. Without it, when the command ends or at
    /// Ctrl-C.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    window: Option<Duration>,
    /// Writes the report as JSON (schema watertight.audit/1) to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Serves the kernel's own counts at http://ADDR/metrics while the command runs.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Lets findings of this kind decide the verdict. Kinds: outlived-request, session-remnant, peer-closed, dead-socket,
    /// unowned (these deny by default), idle, open-at-exit (these warn).
    #[arg(long, value_name = "KIND")]
    deny: Vec<Kind>,
    /// Reports findings of this kind without letting them decide.
    #[arg(long, value_name = "KIND")]
    warn: Vec<Kind>,
    /// Leaves findings of this kind out.
    #[arg(long, value_name = "KIND")]
    allow: Vec<Kind>,
    /// The size of the ring that records wait in, in KiB: a power of two, 4 at least. A full ring costs timestamps, never the
    /// verdict.
    #[arg(long = "ring", value_name = "KIB", default_value_t = RING_BYTES >> 10, value_parser = parse_ring)]
    ring_kib: u32,
    /// How many places there are for what is known of sockets: a power of two, 232 bytes of kernel memory each. A socket that finds
    /// its place taken is followed as well, and costs the program about a microsecond more; the report counts them.
    #[arg(long, value_name = "NUMBER", default_value_t = PLACES, value_parser = parse_places)]
    places: u32,
    /// Shows in each finding the user stack that opened the socket, by name where the program has symbols. Costs about
    /// 20 us a socket, and reads the program's own files. x86-64 only.
    #[arg(long)]
    stacks: bool,
    /// The command to run and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const USAGE: u8 = 2;
const LEAK: u8 = 3;
const INCONCLUSIVE: u8 = 4;
const CANNOT_TRACE: u8 = 5;
/// How many bytes of a report are written at once.
const BUFFER: usize = 1 << 18;
/// What a shell answers for a command that cannot be run.
const CANNOT_RUN: u8 = 127;

fn main() -> ExitCode {
    log::set_logger(&Stderr)
        .map(|()| log::set_max_level(log::LevelFilter::Warn))
        .ok();
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli.command {
        Command::Run(args) => {
            let levels = matches
                .subcommand_matches("run")
                .map(|matches| levels(matches, &args))
                .unwrap_or_default();
            run_command(args, levels)
        }
        Command::Doctor => {
            let checks = doctor::examine();
            anstream::print!("{}", doctor::render(&checks));
            if doctor::passed(&checks) {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(CANNOT_TRACE)
            }
        }
        Command::Enter { cgroup, command } => {
            print_error(format!("{:#}", exec::exec_in_cgroup(&cgroup, &command)));
            ExitCode::from(CANNOT_RUN)
        }
        Command::SelfTest { cgroup } => match exec::run_traffic(&cgroup) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print_error(format!("self-test: {error:#}"));
                ExitCode::FAILURE
            }
        },
    }
}

/// Returns the levels as the command line sets them: as with lints, the last setting of a kind counts.
fn levels(matches: &ArgMatches, args: &RunArgs) -> Levels {
    let mut settings: Vec<(usize, Kind, Level)> = Vec::new();
    for (name, kinds, level) in [
        ("deny", &args.deny, Level::Deny),
        ("warn", &args.warn, Level::Warn),
        ("allow", &args.allow, Level::Allow),
    ] {
        let places = matches.indices_of(name).into_iter().flatten();
        settings.extend(places.zip(kinds).map(|(place, kind)| (place, *kind, level)));
    }
    settings.sort_by_key(|(place, _, _)| *place);
    let mut levels = Levels::default();
    for (_, kind, level) in settings {
        levels.set(kind, level);
    }
    levels
}

fn run_command(args: RunArgs, levels: Levels) -> ExitCode {
    if let Err(error) = check(&args) {
        print_error(format!("{error:#}"));
        return ExitCode::from(USAGE);
    }
    let settings = audit::Settings {
        timeouts: Timeouts {
            grace_ns: nanoseconds(args.grace),
            idle_ns: nanoseconds(args.idle),
        },
        levels,
        limits: Limits {
            ring_bytes: args.ring_kib << 10,
            places: args.places,
        },
        stacks: args.stacks,
    };
    match audited(&settings, args) {
        Ok(code) => code,
        Err(error) => {
            print_error(format!("{error:#}"));
            ExitCode::from(USAGE)
        }
    }
}

fn parse_ring(text: &str) -> Result<u32, String> {
    parse_power_of_two(text, 4, 1 << 20)
}

fn parse_places(text: &str) -> Result<u32, String> {
    parse_power_of_two(text, 1, 1 << 22)
}

fn parse_power_of_two(text: &str, least: u32, most: u32) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|number: &u32| number.is_power_of_two() && (least..=most).contains(number))
        .ok_or_else(|| format!("must be a power of two from {least} to {most}"))
}

/// Looks for mistakes before anything is loaded.
fn check(args: &RunArgs) -> Result<()> {
    if let Some(program) = args.command.first() {
        anyhow::ensure!(
            is_runnable(Path::new(program)),
            "there is no command {}: give its path, or a name that is in PATH, after --",
            program.display()
        );
    }
    anyhow::ensure!(
        stacks::SUPPORTED || !args.stacks,
        "--stacks knows the registers of x86-64 only: leave it out on this machine"
    );
    if let Some(path) = &args.json {
        let writable = if is_replaceable(path) {
            let writable = write(&beside(path), |_| Ok(()));
            std::fs::remove_file(beside(path)).ok();
            writable
        } else {
            write(path, |_| Ok(()))
        };
        writable.with_context(|| format!("cannot write the report {}", path.display()))?;
    }
    Ok(())
}

fn is_runnable(program: &Path) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

#[tokio::main(flavor = "current_thread")]
async fn audited(settings: &audit::Settings, args: RunArgs) -> Result<ExitCode> {
    // Before there is anything to clear up.
    let mut signals = run::Signals::new()?;
    let mut audit = match Audit::start(settings) {
        Ok(audit) => audit,
        Err(error) => {
            print_error(doctor::explain(&error));
            return Ok(ExitCode::from(CANNOT_TRACE));
        }
    };
    if signals.any_received().await {
        print_error("ended by a signal before the command was started: there is no verdict");
        return Ok(ExitCode::from(INCONCLUSIVE));
    }
    let mut endpoint = match args.listen {
        Some(address) => Some(Endpoint::listen(address).await?),
        None => None,
    };
    if let Some(endpoint) = &endpoint {
        anstream::eprintln!("metrics    http://{}/metrics", endpoint.address());
    }
    let settings = run::Settings {
        command: args.command,
        window: args.window,
        grace: args.grace,
    };
    let (audit_log, command) =
        run::run(&mut audit, &settings, endpoint.as_mut(), &mut signals).await?;
    let report = Report::new(&audit_log, audit.ledger());
    // Whoever reads it need not wait for a command that takes its time to end.
    let written = args.json.as_ref().map_or(Ok(()), |path| {
        write_json(&report, path)
            .with_context(|| format!("cannot write the report {}", path.display()))
    });
    command.end(&audit, &mut signals).await;
    anstream::eprint!("{}", text::render(&report));
    written?;
    Ok(match report.verdict {
        Verdict::Clean => {
            let status = audit_log.target.exit_status.unwrap_or(0);
            ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
        }
        Verdict::Leak => ExitCode::from(LEAK),
        Verdict::Inconclusive => ExitCode::from(INCONCLUSIVE),
    })
}

/// Whether a new file may take the path's name. A device, a pipe or a link stays what it is, and is written to.
fn is_replaceable(path: &Path) -> bool {
    path.symlink_metadata()
        .map_or(true, |metadata| metadata.is_file())
}

/// Where a report is written before it takes its name, so that nobody reads half of one.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

fn write_json(report: &Report<'_>, path: &Path) -> std::io::Result<()> {
    if !is_replaceable(path) {
        return write(path, |file| json::write(report, file));
    }
    write(&beside(path), |file| {
        json::write(report, &mut *file)?;
        file.flush()?;
        file.get_ref().sync_all()
    })?;
    std::fs::rename(beside(path), path)
}

fn write(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(BUFFER, File::create(path)?);
    write(&mut file)?;
    file.flush()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn print_error(message: impl Display) {
    const BAD: Style = AnsiColor::Red.on_default().bold();
    anstream::eprintln!("{BAD}tracer{BAD:#} {message}");
}

/// Passes on what the audit and the eBPF programs log.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            print_error(record.args());
        }
    }

    fn flush(&self) {}
}
