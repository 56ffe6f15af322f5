//! Files that are whole or not there, also after a crash.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

/// Writes a file with `mode`, so that its name leads to the old content or to all of the new at any
/// time.
///
/// # Errors
///
/// What the system says. The old file is still there, unless the system cannot tell whether the new
/// one is on its disk.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, |file| {
        file.persist(path).map_err(|error| error.error)
    })
}

/// Writes a file with `mode` as [`replace`] does, where there is none yet.
///
/// # Errors
///
/// `AlreadyExists` if there is one, else what the system says.
pub fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, |file| {
        file.persist_noclobber(path).map_err(|error| error.error)
    })
}

fn write(
    path: &Path,
    content: &[u8],
    mode: u32,
    persist: impl FnOnce(NamedTempFile) -> io::Result<File>,
) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(&prefix(path))
        .suffix(SUFFIX)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    persist(file)?;
    // Without this a crash may undo the change of the name.
    File::open(folder)?.sync_all()
}

/// Removes what writes of `path` left behind when their process was killed. Nobody may be writing
/// it.
///
/// # Errors
///
/// What the system says.
pub fn sweep(path: &Path) -> io::Result<()> {
    let prefix = prefix(path);
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(prefix.as_encoded_bytes()) && name.ends_with(SUFFIX.as_bytes()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

const SUFFIX: &str = "new";

fn prefix(path: &Path) -> std::ffi::OsString {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_content_and_mode_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        replace(&path, b"one", 0o644).unwrap();
        assert_eq!(mode(), 0o644);
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap(), mode()),
            (b"two".to_vec(), 0o600)
        );
        let error = create(&path, b"three", 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        create(&folder.path().join("b"), b"", 0o600).unwrap();
        assert_eq!(names(folder.path()), ["a", "b"]);
        assert!(replace(&folder.path().join("no/a"), b"", 0o600).is_err());
        assert!(replace(folder.path(), b"", 0o600).is_err());
    }

    #[test]
    fn what_a_killed_process_left_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", ".a.new", ".a.x1y2z3new", ".ab.new", "a.new", ".a.old"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        sweep(&folder.path().join("a")).unwrap();
        assert_eq!(names(folder.path()), [".a.old", ".ab.new", "a", "a.new"]);
    }
}
