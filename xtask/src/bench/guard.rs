//! A guard over a long load: the memory that it takes, and its CPU time.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::median;

/// How often the guard's memory is read.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Connections a second.
    #[arg(long, default_value_t = 5_000)]
    rate: u32,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    super::build()?;
    println!("{}", super::machine()?);
    let guarded = Guarded::start()?;
    let connections = args.rate.saturating_mul(args.seconds);
    let mut load = guarded
        .command()?
        .args(["__connections", "--connections", &connections.to_string()])
        .args(["--rate", &args.rate.to_string()])
        .stdout(Stdio::null())
        .spawn()?;
    let began = Instant::now();
    let mut samples = Vec::new();
    let status = loop {
        if let Some(status) = load.try_wait()? {
            break status;
        }
        thread::sleep(SAMPLE_INTERVAL);
        let kib = guarded.memory_kib()?;
        println!("{:>5} s: {kib} KiB", began.elapsed().as_secs());
        samples.push(kib as f64);
    };
    ensure!(status.success(), "the load ended with {status}");
    let took = began.elapsed().as_secs_f64();
    let third = samples.len().div_ceil(3);
    let first = median(samples.iter().copied().take(third).collect());
    let last = median(samples.iter().rev().copied().take(third).collect());
    println!(
        "{connections} connections in {took:.0} s; the guard's memory, medians: {first:.0} KiB in the \
         first third, {last:.0} KiB in the last; its CPU time: {:.1} % of one",
        guarded.cpu_seconds()? / took * 100.0
    );
    Ok(ExitCode::SUCCESS)
}

/// Returns where cgroup v2 is mounted.
fn cgroup_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' ').skip(1));
    fields
        .find_map(|mut fields| {
            let target = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(target))
        })
        .context("no cgroup v2 is mounted")
}

/// A cgroup with a guard. Both go when it is dropped.
pub(super) struct Guarded {
    cgroup: PathBuf,
    guard: Child,
}

impl Guarded {
    pub(super) fn start() -> Result<Self> {
        let name = format!("wt-bench-{}", std::process::id());
        let cgroup = cgroup_mount()?.join(name);
        fs::create_dir(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        let mut guard = super::release_tracer();
        guard.args(["attach", "--cgroup"]).arg(&cgroup);
        let guard = guard.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut guarded = Self { cgroup, guard };
        let mut line = String::new();
        let stderr = guarded.guard.stderr.take().context("no pipe")?;
        BufReader::new(stderr).read_line(&mut line)?;
        ensure!(
            line.starts_with("guarding"),
            "the guard did not start: {line}"
        );
        Ok(guarded)
    }

    /// Returns the guard's resident memory, of its own and of its files.
    fn memory_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.guard.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("no VmRSS")?.trim().parse()?)
    }

    /// Returns the guard's CPU time so far, in seconds.
    fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/schedstat", self.guard.id()))?;
        let ns = stat.split(' ').next().context("no time")?;
        Ok(ns.parse::<f64>()? / 1e9)
    }

    /// Returns this binary's command in the cgroup.
    pub(super) fn command(&self) -> Result<Command> {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""])
            .arg(&self.cgroup)
            .arg(std::env::current_exe()?);
        Ok(command)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.guard), Signal::TERM);
        let _ = self.guard.wait();
        if let Err(error) = fs::remove_dir(&self.cgroup) {
            eprintln!("cannot remove {}: {error}", self.cgroup.display());
        }
    }
}

/// Other cgroups of the machine. They go when this is dropped.
pub(super) struct Beside(Vec<(PathBuf, Child)>);

impl Beside {
    /// Makes `count` cgroups with a process in each.
    pub(super) fn start(count: u32) -> Result<Self> {
        let mut beside = Self(Vec::new());
        for n in 0..count {
            let name = format!("wt-beside-{}-{n}", std::process::id());
            let cgroup = cgroup_mount()?.join(name);
            fs::create_dir(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
            let process = Command::new("sleep").arg("infinity").spawn()?;
            fs::write(cgroup.join("cgroup.procs"), process.id().to_string())?;
            beside.0.push((cgroup, process));
        }
        Ok(beside)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        for (cgroup, process) in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
            if let Err(error) = fs::remove_dir(&*cgroup) {
                eprintln!("cannot remove {}: {error}", cgroup.display());
            }
        }
    }
}
