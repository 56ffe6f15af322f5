//! The file of a report. A reader sees the whole report or the previous file.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

/// How many bytes are written at once.
const BUFFER_BYTES: usize = 1 << 18;
/// The mode of a new file, before the umask.
const MODE: u32 = 0o666;

/// Checks that a report can be written to `path`.
///
/// # Errors
///
/// When the file or its folder cannot be written to.
pub fn check_writable(path: &Path) -> io::Result<()> {
    if is_replaceable(path) {
        temporary(path).map(drop)
    } else {
        File::create(path).map(drop)
    }
}

/// Writes a file with `write`. A regular file is replaced once the new one is complete and on the
/// disk. A device, a pipe or a link is written to in place.
///
/// # Errors
///
/// When the file cannot be written or replaced.
pub fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    if !is_replaceable(path) {
        return write_all(&File::create(path)?, write);
    }
    let file = temporary(path)?;
    write_all(file.as_file(), write)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    // The report is written by now: not every file system can sync a folder.
    if let Err(error) = File::open(folder(path)).and_then(|folder| folder.sync_all()) {
        log::warn!("cannot sync the folder of {}: {error}", path.display());
    }
    Ok(())
}

fn write_all(
    file: &File,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, file);
    write(&mut buffered)?;
    buffered.flush()
}

/// Whether a new file may replace what is at the path.
fn is_replaceable(path: &Path) -> bool {
    fs::symlink_metadata(path).map_or(true, |metadata| metadata.is_file())
}

/// Makes a file in the path's folder. It is removed when it is dropped.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    let mut prefix = path.file_name().unwrap_or_default().to_owned();
    prefix.push(".");
    tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".partial")
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(folder(path))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(to: &mut BufWriter<&File>) -> io::Result<()> {
        to.write_all(b"hello")
    }

    #[test]
    fn a_file_is_replaced_whole_or_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        fs::write(&path, "before").unwrap();
        check_writable(&path).unwrap();
        let failed = write_file(&path, |to| {
            to.write_all(b"half")?;
            Err(io::ErrorKind::Other.into())
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        write_file(&path, hello).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_has_the_permissions_that_the_umask_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        write_file(&path, hello).unwrap();
        fs::write(&other, "").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&other));
    }

    #[test]
    fn a_link_and_a_device_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "before").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_file(&link, hello).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), "hello");
        write_file(Path::new("/dev/null"), hello).unwrap();
        assert!(!is_replaceable(Path::new("/dev/null")));
        assert!(write_file(Path::new("/dev/full"), hello).is_err());
        assert!(check_writable(Path::new("/no/such/folder/report.json")).is_err());
    }

    #[test]
    fn a_bare_name_is_in_the_current_folder() {
        assert_eq!(folder(Path::new("report.json")), Path::new("."));
        assert_eq!(folder(Path::new("/report.json")), Path::new("/"));
    }
}
