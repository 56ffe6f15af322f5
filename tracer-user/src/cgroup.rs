//! The audit's own cgroup v2: found, made, entered, frozen, removed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{io, thread};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

/// How long the processes of a cgroup may take to freeze, and to be gone when they are killed.
const TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How often the remaining processes are moved out before the cgroup is left behind.
const MOVE_ATTEMPTS: u32 = 20;
/// How many names are tried for a cgroup.
const NAME_ATTEMPTS: u32 = 100;

/// Why there is no cgroup to audit in.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// No cgroup v2 is mounted.
    #[error("no cgroup v2 hierarchy is mounted")]
    NotMounted,
    /// `/proc` does not say where a process is.
    #[error("{} has no cgroup v2 line", .0.display())]
    NoMembership(PathBuf),
    /// Nothing in the cgroup runs, not even a self-test.
    #[error("the cgroup {} is frozen", .0.display())]
    Frozen(PathBuf),
    /// Other audits use every name that was tried.
    #[error("other audits use every cgroup name that was tried")]
    NoFreeName,
    /// A file operation failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CgroupError + 'a {
    move |source| CgroupError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Returns where cgroup v2 is mounted. On hybrid hosts that is not `/sys/fs/cgroup`.
///
/// # Errors
///
/// When it is mounted nowhere, or `/proc/mounts` cannot be read.
pub fn mount() -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/mounts");
    let mounts = fs::read_to_string(path).map_err(failed("cannot read", path))?;
    mounts_v2(&mounts).ok_or(CgroupError::NotMounted)
}

fn mounts_v2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(target)))
    })
}

/// Undoes the octal escapes of `/proc/mounts` (`mangle_path` in fs/seq_file.c).
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Returns the directory of a process's cgroup v2; `process` is its PID, or "self".
///
/// # Errors
///
/// When there is no such process, or cgroup v2 is not mounted.
pub fn of_process(process: &str) -> Result<PathBuf, CgroupError> {
    let file = Path::new("/proc").join(process).join("cgroup");
    let text = fs::read_to_string(&file).map_err(failed("cannot read", &file))?;
    let below = membership(&text).ok_or(CgroupError::NoMembership(file))?;
    Ok(mount()?.join(below))
}

/// Returns the processes in a cgroup and below it. A process that is being moved may be missed or
/// returned twice.
#[must_use]
pub fn processes(path: &Path) -> HashSet<u32> {
    let mut processes = HashSet::new();
    collect(path, &mut processes);
    processes
}

/// Opens the directory of a cgroup, to attach programs to it.
///
/// # Errors
///
/// When it is gone.
pub fn open(path: &Path) -> Result<File, CgroupError> {
    File::open(path).map_err(failed("cannot open", path))
}

/// Returns the id of a cgroup, by which the kernel knows it (`kernfs_node.id`).
///
/// # Errors
///
/// When it is gone.
pub fn id(path: &Path) -> Result<u64, CgroupError> {
    let metadata = fs::metadata(path).map_err(failed("cannot look at", path))?;
    Ok(metadata.ino())
}

/// Whether a process lives in a cgroup or below it. The root, which always has some, does not say.
#[must_use]
pub fn is_populated(path: &Path) -> bool {
    let is_root = path.exists() && !path.join("cgroup.events").exists();
    is_root || has_event(path, "populated")
}

/// Freezes every process in a cgroup. Returns whether all are frozen; to thaw them is due in either
/// case.
#[must_use]
pub fn freeze(path: &Path) -> bool {
    fs::write(path.join("cgroup.freeze"), "1").is_ok() && wait_until(|| is_frozen(path))
}

/// Kills every process in a cgroup (`cgroup.kill`, Linux 5.14; one by one before).
pub fn kill(path: &Path) {
    if fs::write(path.join("cgroup.kill"), "1").is_err() {
        for process in processes(path) {
            if let Some(pid) = i32::try_from(process)
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            {
                // It may have ended by itself.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
    wait_until(|| !is_populated(path));
}

/// Whether a cgroup, or one above it, is frozen.
#[must_use]
pub fn is_frozen(path: &Path) -> bool {
    has_event(path, "frozen")
}

fn has_event(path: &Path, name: &str) -> bool {
    fs::read_to_string(path.join("cgroup.events")).is_ok_and(|events| {
        events
            .lines()
            .any(|line| line.strip_prefix(name) == Some(" 1"))
    })
}

/// Returns a process's cgroup v2, as a path below the mount.
fn membership(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// A cgroup that belongs to one audit. Dropping it moves its processes to the parent and removes
/// it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    parent: PathBuf,
    _lock: File,
}

impl Cgroup {
    /// Makes a cgroup of its own below this process's.
    ///
    /// # Errors
    ///
    /// When cgroup v2 is not mounted or not writable.
    pub fn create(name: &str) -> Result<Self, CgroupError> {
        let parent = of_process("self")?;
        Self::create_below(parent, name)
    }

    /// Makes a cgroup of its own below another one.
    ///
    /// # Errors
    ///
    /// When the other one is not a cgroup v2 or not writable.
    pub fn create_below(parent: PathBuf, name: &str) -> Result<Self, CgroupError> {
        remove_stale(&parent, name);
        for attempt in 0..NAME_ATTEMPTS {
            // Audits in other PID namespaces may have the same PID.
            let path = parent.join(format!("{name}-{}-{attempt}", std::process::id()));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(failed("cannot make the cgroup", &path))?,
            }
            join_threads(&path).map_err(failed("cannot make the cgroup threaded", &path))?;
            let locked = lock(&path).map_err(failed("cannot lock the cgroup", &path))?;
            if let Some(lock) = locked {
                return Ok(Self {
                    path,
                    parent,
                    _lock: lock,
                });
            }
        }
        Err(CgroupError::NoFreeName)
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn remove(&self) {
        for _ in 0..MOVE_ATTEMPTS {
            for process in processes(&self.path) {
                let _ = fs::write(self.parent.join("cgroup.procs"), process.to_string());
            }
            if remove_tree(&self.path).is_ok() {
                return;
            }
            thread::sleep(POLL_INTERVAL);
        }
        log::warn!("cannot remove the cgroup {}", self.path.display());
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Moves this process into a cgroup.
///
/// # Errors
///
/// When the cgroup is gone or not writable.
pub fn enter(path: &Path) -> Result<(), CgroupError> {
    let processes = path.join("cgroup.procs");
    fs::write(&processes, "0").map_err(failed("cannot enter the cgroup by", &processes))
}

/// Locks a cgroup for as long as the file is open; `None` if another audit has it or has just
/// removed it. The lock ends with the process. A PID in the name would not do: in another PID
/// namespace it means another process.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let directory = match File::open(path) {
        Err(error) if gone(&error) => return Ok(None),
        opened => opened?,
    };
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    match fs::metadata(path) {
        Err(error) if gone(&error) => Ok(None),
        there => Ok((there?.ino() == directory.metadata()?.ino()).then_some(directory)),
    }
}

/// Below a threaded cgroup, only another threaded one takes processes.
fn join_threads(path: &Path) -> io::Result<()> {
    let kind = path.join("cgroup.type");
    let is_invalid = fs::read_to_string(&kind).is_ok_and(|it| it.trim_end() == "domain invalid");
    if is_invalid {
        fs::write(kind, "threaded")?;
    }
    Ok(())
}

/// Removes cgroups of this name that nobody has locked: their audits were killed. Processes in them
/// are thawed.
fn remove_stale(parent: &Path, name: &str) {
    for path in children(parent) {
        let file = path.file_name().and_then(|file| file.to_str());
        if file.is_some_and(|file| is_audit(file, name))
            && let Ok(Some(_lock)) = lock(&path)
        {
            // A cgroup that cannot be written or removed does no harm.
            let _ = fs::write(path.join("cgroup.freeze"), "0");
            let _ = remove_tree(&path);
        }
    }
}

/// Whether this is the name of a cgroup that an audit made: others may begin as it does.
fn is_audit(file: &str, name: &str) -> bool {
    let numbers = file
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('-')?.split_once('-'));
    numbers
        .is_some_and(|(pid, attempt)| pid.parse::<u32>().is_ok() && attempt.parse::<u32>().is_ok())
}

fn collect(path: &Path, processes: &mut HashSet<u32>) {
    let read = |name| fs::read_to_string(path.join(name));
    // A threaded cgroup tells its threads only.
    if let Ok(text) = read("cgroup.procs").or_else(|_| read("cgroup.threads")) {
        processes.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    for child in children(path) {
        collect(&child, processes);
    }
}

/// Returns the directories in one; none where it cannot be read.
pub(crate) fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    fs::remove_dir(path)
}

fn wait_until(done: impl Fn() -> bool) -> bool {
    let rounds = TIMEOUT.as_millis() / POLL_INTERVAL.as_millis();
    for _ in 0..rounds {
        if done() {
            return true;
        }
        thread::sleep(POLL_INTERVAL);
    }
    done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(mounts_v2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            mounts_v2("none /run/my\\040groups cgroup2 rw 0 0"),
            Some("/run/my groups".into())
        );
        assert_eq!(
            mounts_v2("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0"),
            None
        );
    }

    #[test]
    fn only_the_cgroups_of_audits_are_taken_for_left_behind() {
        assert!(is_audit("watertight-4711-0", "watertight"));
        for other in [
            "watertight",
            "watertight-prod",
            "watertight-prod-1",
            "watertight-1",
            "x-1-0",
        ] {
            assert!(!is_audit(other, "watertight"), "{other}");
        }
    }

    #[test]
    fn membership_is_the_v2_line() {
        assert_eq!(
            membership("9:name=systemd:/a\n0::/user.slice/x\n"),
            Some("user.slice/x")
        );
        assert_eq!(membership("0::/\n"), Some(""));
        assert_eq!(membership("9:cpu:/a\n"), None);
    }
}
