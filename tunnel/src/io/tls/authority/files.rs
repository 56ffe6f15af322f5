//! The files of an authority.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use crate::io::files;
use crate::io::tls::authority::{AuthorityError, failed};

/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 64 * 1024;

/// Reads a file. Returns `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Writes a file that may exist already. The lock excludes other writers.
pub(super) fn write(path: &Path, content: &str, mode: u32) -> Result<(), AuthorityError> {
    files::sweep(path)
        .and_then(|()| files::replace(path, content.as_bytes(), mode))
        .map_err(failed("write", path))
}

/// Writes a file that must never be replaced.
pub(super) fn create(path: &Path, content: &str, mode: u32) -> Result<(), AuthorityError> {
    files::sweep(path)
        .and_then(|()| files::create(path, content.as_bytes(), mode))
        .map_err(failed("make", path))
}
