//! One audit of the program, round by round.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal, Lines, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::super::Tracer;
use super::{Clients, Counters, Outcome, PROGRAM, REQUESTS};
use crate::demo::scrape::{counter, get};
use crate::shell::{root, target};

/// Between two rounds: longer than the tracer's grace, so that the connections of a round are
/// passed over by those of the next.
const PAUSE: Duration = Duration::from_millis(1500);
/// The leaking program is given up after so many rounds. The tracer needs 5 or 6, and more on a
/// slow machine.
const MAX_ROUNDS: usize = 24;
/// What the program counts.
const ADDED: &str = "session_server_total_add_connections";
const REMOVED: &str = "session_server_total_remove_connections";
/// What the tracer counts: the sockets with a denied finding.
const LEAKED: &str = "watertight_audit_leaked_sockets";

/// Runs the program under the tracer for so many rounds; for `None`, until the tracer finds
/// something. The verdict is given while the program still runs.
pub(super) fn run(clients: Clients, api: SocketAddr, rounds: Option<usize>) -> Result<Outcome> {
    let report = clients.report();
    // The report of an earlier run must not be taken for this one's.
    if let Err(error) = fs::remove_file(&report)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", report.display()));
    }
    let mut audit = Audit::start(clients, api)?;
    let (rounds, counters) = match rounds {
        Some(rounds) => (rounds, audit.rounds(rounds)?),
        None => audit.rounds_until_found()?,
    };
    let status = audit.finish()?;
    let text =
        fs::read_to_string(&report).with_context(|| format!("cannot read {}", report.display()))?;
    Ok(Outcome {
        clients,
        rounds,
        counters,
        status,
        report: serde_json::from_str(&text)?,
    })
}

/// The tracer with the program under it.
struct Audit {
    tracer: Tracer,
    /// The program makes a round for each line that it is sent, and answers with its counters.
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    /// Passes on what the tracer prints.
    messages: JoinHandle<()>,
    metrics: SocketAddr,
}

impl Audit {
    fn start(clients: Clients, api: SocketAddr) -> Result<Self> {
        let mut command = Command::new(target().join("release/tracer"));
        command
            .args(["run", "--pile-up-after", "3s", "--stacks"])
            .args(["--listen", "127.0.0.1:0", "--json"])
            .arg(clients.report())
            .arg("--")
            .arg(target().join("debug/examples").join(PROGRAM))
            .arg(api.to_string())
            .args(["--requests", &REQUESTS.to_string()]);
        if clients == Clients::Each {
            command.arg("--client-per-request");
        }
        println!("\n{}: {}", clients.name(), words(&command));
        if std::io::stderr().is_terminal() {
            command.env("CLICOLOR_FORCE", "1");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the tracer")?;
        let stdin = child.stdin.take().context("a pipe was asked for")?;
        let stdout = child.stdout.take().context("a pipe was asked for")?;
        let stderr = child.stderr.take().context("a pipe was asked for")?;
        let tracer = Tracer(child);
        let (sender, addresses) = channel();
        let messages = thread::spawn(move || pass_on(stderr, &sender));
        let metrics = addresses.recv();
        Ok(Self {
            tracer,
            stdin,
            stdout: BufReader::new(stdout).lines(),
            messages,
            metrics: metrics.context("the tracer did not start; its message is above")?,
        })
    }

    fn rounds(&mut self, rounds: usize) -> Result<Counters> {
        let mut counters = self.round(1)?;
        for number in 2..=rounds {
            sleep(PAUSE);
            counters = self.round(number)?;
        }
        Ok(counters)
    }

    fn rounds_until_found(&mut self) -> Result<(usize, Counters)> {
        self.round(1)?;
        let mut number = 1;
        loop {
            sleep(PAUSE);
            let has_found = counter(&get(self.metrics, "/metrics")?, LEAKED) > 0;
            number += 1;
            let counters = self.round(number)?;
            if has_found || number >= MAX_ROUNDS {
                return Ok((number, counters));
            }
        }
    }

    /// Makes the program do a round, and returns its counters.
    fn round(&mut self, number: usize) -> Result<Counters> {
        let ended = || format!("the program ended in round {number}; its message is above");
        writeln!(self.stdin).with_context(ended)?;
        let mut count = |name: &str| -> Result<u64> {
            let line = self.stdout.next().with_context(ended)??;
            ensure!(line.starts_with(name), "{line:?} where {name} was expected");
            Ok(counter(&line, name))
        };
        let counters = Counters {
            added: count(ADDED)?,
            removed: count(REMOVED)?,
        };
        let Counters { added, removed } = counters;
        println!("round {number:<4} its counters: {added} added, {removed} removed");
        Ok(counters)
    }

    /// Asks for the verdict, and returns the exit status.
    fn finish(mut self) -> Result<Option<i32>> {
        self.tracer.interrupt()?;
        let status = self.tracer.0.wait()?;
        ensure!(self.messages.join().is_ok(), "a message could not be read");
        Ok(status.code())
    }
}

/// Passes on what the tracer prints, and sends the address of its metrics.
fn pass_on(stderr: ChildStderr, metrics: &Sender<SocketAddr>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        // Reading goes on, or the tracer would wait.
        let _ = writeln!(std::io::stderr(), "{line}");
        if let Some(address) = address(&line) {
            // Nobody waits for a second one.
            let _ = metrics.send(address);
        }
    }
}

/// Returns the address in `http://ADDRESS/metrics`.
fn address(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("http://")?;
    rest.split_once("/metrics")?.0.parse().ok()
}

/// Returns a command as one would write it in the workspace's directory.
fn words(command: &Command) -> String {
    let root = root();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let short = words.map(|word| {
        Path::new(word)
            .strip_prefix(&root)
            .unwrap_or(Path::new(word))
    });
    let words: Vec<String> = short.map(|word| word.display().to_string()).collect();
    words.join(" ")
}
