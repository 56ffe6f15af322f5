//! A file that is read again when it has changed.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The most bytes that are read from a file.
const FILE_MAX: u64 = 4 << 20;

/// The parsed content of a file when it was last checked. A file that is missing or cannot be read
/// counts as empty.
pub(super) struct Watched<T> {
    path: PathBuf,
    parse: fn(&[u8]) -> T,
    read: Mutex<Option<(Stamp, Arc<T>)>>,
}

/// Identifies a version of a file: its device and inode, its length, and when it was written.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    written: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let metadata = std::fs::metadata(path);
        metadata.map_or_else(
            |_| Self::default(),
            |metadata| Self {
                file: (metadata.dev(), metadata.ino()),
                length: metadata.len(),
                written: (metadata.mtime(), metadata.mtime_nsec()),
            },
        )
    }
}

impl<T> Watched<T> {
    pub(super) fn new(path: PathBuf, parse: fn(&[u8]) -> T) -> Self {
        Self {
            path,
            parse,
            read: Mutex::default(),
        }
    }

    /// Returns the content that the file has now.
    pub(super) fn current(&self) -> Arc<T> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(&self.path);
        if let Some((of, content)) = &*read
            && *of == stamp
        {
            return Arc::clone(content);
        }
        let content = Arc::new((self.parse)(&self.content()));
        *read = Some((stamp, Arc::clone(&content)));
        content
    }

    fn content(&self) -> Vec<u8> {
        let mut content = Vec::new();
        let read =
            File::open(&self.path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut content));
        match read {
            Ok(length) if length as u64 == FILE_MAX => {
                tracing::warn!(
                    file = %self.path.display(),
                    "the file is too long; only its first {FILE_MAX} bytes count"
                );
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(
                    file = %self.path.display(),
                    %error,
                    "cannot read the file; its defaults apply"
                );
                content.clear();
            }
        }
        content
    }
}
