//! The file of a report. A reader sees the whole report or the previous file.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{OFlags, PROC_SUPER_MAGIC, statfs};
use rustix::io::Errno;
use rustix::process::geteuid;
use tempfile::NamedTempFile;

/// How many bytes are written at once.
const BUFFER_BYTES: usize = 1 << 18;
/// The mode of a new file, before the umask.
const MODE: u32 = 0o666;
/// How many links are followed (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;
/// The sticky bit, and everybody may write.
const SHARED: u32 = 0o1002;
const NO_FOLLOW: i32 = OFlags::NOFOLLOW.bits().cast_signed();

/// Checks that a report can be written to `path`.
///
/// # Errors
///
/// When the file or its folder cannot be written to.
pub fn check_writable(path: &Path) -> io::Result<()> {
    if is_replaceable(path) {
        temporary(path).map(drop)
    } else {
        open_in_place(path).map(drop)
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
        return write_all(&open_in_place(path)?, write);
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

/// Opens a device, a pipe or a link's target. In a folder that everybody may write to, such as
/// `/tmp`, only what this user or the folder's owner made is followed and written to
/// (`fs.protected_symlinks` and `fs.protected_fifos` in proc_sys_fs(5), which may be off).
fn open_in_place(path: &Path) -> io::Result<File> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            metadata => Some(metadata?),
        };
        if let Some(metadata) = metadata.as_ref().filter(|it| !it.is_file()) {
            check_owner(&path, metadata)?;
        }
        if !metadata.is_some_and(|it| it.is_symlink()) {
            return open_options().custom_flags(NO_FOLLOW).open(&path);
        }
        // Those of /proc/PID/fd lead to a file without a path.
        if statfs(folder(&path))?.f_type == PROC_SUPER_MAGIC {
            return open_options().open(&path);
        }
        path = folder(&path).join(fs::read_link(&path)?);
    }
    Err(Errno::LOOP.into())
}

fn open_options() -> OpenOptions {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    options
}

fn check_owner(path: &Path, metadata: &Metadata) -> io::Result<()> {
    let of = fs::metadata(folder(path))?;
    let owner = metadata.uid();
    let is_trusted = owner == geteuid().as_raw() || owner == of.uid();
    if of.mode() & SHARED == SHARED && !is_trusted {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} is of user {owner}, in a folder that everybody may write to",
                path.display()
            ),
        ));
    }
    Ok(())
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
    use std::os::unix::fs::{lchown, symlink};

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
        symlink(&target, &link).unwrap();
        write_file(&link, hello).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), "hello");
        write_file(Path::new("/dev/null"), hello).unwrap();
        assert!(!is_replaceable(Path::new("/dev/null")));
        assert!(write_file(Path::new("/dev/full"), hello).is_err());
        assert!(check_writable(Path::new("/no/such/folder/report.json")).is_err());
    }

    /// A folder like `/tmp`.
    fn shared_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        folder
    }

    #[test]
    fn a_link_at_the_name_of_the_partial_file_is_left_alone() {
        let folder = shared_folder();
        let (target, path) = (folder.path().join("target"), folder.path().join("report"));
        fs::write(&target, "before").unwrap();
        for name in ["report.partial", "report.tmp", ".report", "report~"] {
            symlink(&target, folder.path().join(name)).unwrap();
        }
        check_writable(&path).unwrap();
        write_file(&path, hello).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "before");
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello");
        assert!(!path.is_symlink());
    }

    #[test]
    fn links_are_followed_to_the_end_and_circles_are_not() {
        let folder = shared_folder();
        let path = |name: &str| folder.path().join(name);
        symlink("second", path("first")).unwrap();
        symlink(path("new"), path("second")).unwrap();
        symlink("circle", path("circle")).unwrap();
        write_file(&path("first"), hello).unwrap();
        assert_eq!(fs::read_to_string(path("new")).unwrap(), "hello");
        assert!(check_writable(&path("circle")).is_err());
        check_writable(Path::new("/dev/stderr")).unwrap();
    }

    #[test]
    fn links_of_others_are_not_followed_in_a_folder_for_all() {
        if !geteuid().is_root() {
            // Only root can make a link of somebody else.
            return;
        }
        let folder = shared_folder();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        let first = folder.path().join("first");
        fs::write(&target, "before").unwrap();
        symlink(&target, &link).unwrap();
        symlink(&link, &first).unwrap();
        lchown(&link, Some(1234), None).unwrap();
        for path in [&link, &first] {
            assert!(check_writable(path).is_err());
            let error = write_file(path, hello).unwrap_err().to_string();
            assert!(error.contains("of user 1234"), "{error}");
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "before");
        // In a folder of this user's own, nobody else could have made it.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        write_file(&first, hello).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "hello");
    }

    #[test]
    fn a_bare_name_is_in_the_current_folder() {
        assert_eq!(folder(Path::new("report.json")), Path::new("."));
        assert_eq!(folder(Path::new("/report.json")), Path::new("/"));
    }
}
