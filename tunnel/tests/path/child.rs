//! The binary as a process of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that is killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunnel"));
    command
        .args(arguments)
        .env("TUNNEL_TOKEN", "secret")
        .env_remove("RUST_LOG")
        .env_remove("TUNNEL_PEER_TOKEN");
    command
}

impl Process {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::spawn(command(arguments).env("TUNNEL_LOG", "error"))
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub(crate) fn listening(&mut self, kind: &str) -> String {
        self.try_listening(kind)
            .unwrap_or_else(|| panic!("the process does not listen as {kind}"))
    }

    /// Returns where the process listens; `None` when it ended instead.
    pub(crate) fn try_listening(&mut self, kind: &str) -> Option<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let prefix = format!("listening {kind}=");
        line.trim().strip_prefix(&prefix).map(str::to_owned)
    }

    /// Returns the other end of the process's standard input, if it is a pipe.
    pub(crate) fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Returns the next line of what the process prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Asks the process to drain.
    pub(crate) fn signal(&self) {
        self.send("-TERM");
    }

    /// Asks the process to read its configuration again.
    pub(crate) fn hang_up(&self) {
        self.send("-HUP");
    }

    /// Stops the process, which does not notice.
    pub(crate) fn freeze(&self) {
        self.send("-STOP");
    }

    fn send(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    pub(crate) fn sockets(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// Reads a file of the process in `/proc`.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap()
    }

    /// Memory that the process holds, in KiB: a field of `proc_pid_status(5)`.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    }

    /// Time that the process has had on a CPU so far, in clock ticks of 10 ms (`proc_pid_stat(5)`).
    pub(crate) fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        let [user, system] = [11, 12].map(|at| fields.clone().nth(at).unwrap());
        user.parse::<u64>().unwrap() + system.parse::<u64>().unwrap()
    }

    pub(crate) fn status(&mut self) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(Instant::now() < deadline, "the process does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
