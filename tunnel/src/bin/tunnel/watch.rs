//! Watches files by looking at them again and again. That sees a rename, a changed link, a mounted
//! secret and a network file system alike.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How often the files are looked at. A token that is removed from a file is refused within a
/// moment more than this.
const STEP: Duration = Duration::from_millis(500);

/// The files that the configuration depends on.
#[derive(Debug)]
pub(crate) struct Watch {
    files: Vec<PathBuf>,
    seen: Vec<Option<Look>>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    length: u64,
    /// Of the content, in nanoseconds.
    modified: (i64, i64),
    /// Of the file's own entry: a file that was put back with its old time is seen by it.
    changed: (i64, i64),
}

impl Watch {
    /// Watches for changes of the present state. Call it before the files are read, so that no
    /// change falls between the two.
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        let seen = look_at(&files);
        Self { files, seen }
    }

    /// Watches these files from now on. Files that were watched before keep the state in which they
    /// were last seen.
    pub(crate) fn set(&mut self, files: Vec<PathBuf>) {
        let seen = files.iter().map(|file| {
            let before = self.files.iter().position(|known| known == file);
            before.map_or_else(|| look(file), |at| self.seen.get(at).copied().flatten())
        });
        self.seen = seen.collect();
        self.files = files;
    }

    /// Waits until a file has changed.
    pub(crate) async fn changed(&mut self) {
        let mut timer = interval(STEP);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let files = self.files.clone();
            // Off the workers: a file system may take its time.
            let Ok(now) = tokio::task::spawn_blocking(move || look_at(&files)).await else {
                return std::future::pending().await;
            };
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}

fn look_at(files: &[PathBuf]) -> Vec<Option<Look>> {
    files.iter().map(|file| look(file)).collect()
}

fn look(file: &Path) -> Option<Look> {
    let found = std::fs::metadata(file).ok()?;
    Some(Look {
        device: found.dev(),
        inode: found.ino(),
        length: found.len(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_way_to_change_a_file_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let other = folder.path().join("other");
        let mut watch = Watch::new(vec![file.clone()]);
        let idle = tokio::time::timeout(5 * STEP, watch.changed()).await;
        assert!(idle.is_err());
        std::fs::write(&file, "one").unwrap();
        watch.changed().await;
        std::fs::write(&file, "more").unwrap();
        watch.changed().await;
        std::fs::write(&other, "more").unwrap();
        std::fs::rename(&other, &file).unwrap();
        watch.changed().await;
        std::fs::remove_file(&file).unwrap();
        watch.changed().await;
        watch.set(vec![file.clone(), other]);
        std::fs::write(&file, "").unwrap();
        watch.changed().await;
    }
}
