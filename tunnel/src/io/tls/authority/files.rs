//! Files that are whole or not there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::io::tls::authority::{AuthorityError, failed};

/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 64 * 1024;

/// Reads a file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Writes a file under another name and renames it, so that it has all of its content whenever it is read.
pub(super) fn write(
    directory: &Path,
    name: &str,
    content: &str,
    mode: u32,
) -> Result<(), AuthorityError> {
    let path = directory.join(name);
    let temporary = directory.join(format!(".{name}.new"));
    // One may be left of a process that was killed; the lock says that nobody writes it now.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace", &temporary)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed("write", &path))
}
