//! `--pin`: links, maps and the witness in a directory of a BPF file system, so that a tracer that
//! is killed and comes back goes on where it was.

use std::ffi::CString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use aya::programs::Iter;
use aya::programs::links::{FdLink, PinnedLink};
use thiserror::Error;
use tracer_abi::pinned::Settings;

/// `BPF_FS_MAGIC` (linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// What the names of pins begin with.
const PREFIX: &str = "watertight_";
/// Pinned last: without it the rest is not whole.
pub(super) const SETTINGS: &str = "SETTINGS";
const WITNESS: &str = "witness";
const LINK: &str = "link_";

/// [`Settings`] as a map's value.
type Words = [u64; size_of::<Settings>() / size_of::<u64>()];

/// Why pins cannot be made or used.
#[derive(Debug, Error)]
pub enum PinError {
    /// The directory is on another file system.
    #[error("{} is on no BPF file system: mount -t bpf bpf /sys/fs/bpf, and give a directory below it", .0.display())]
    NotBpfFs(PathBuf),
    /// What is pinned there was loaded otherwise.
    #[error("{} holds the pins of an audit of something else, with other options or by another build: give the same, or remove it with tracer detach --pin", .0.display())]
    Other(PathBuf),
    /// A pin could not be made, read or removed.
    #[error("cannot {what} {}: {source}", .path.display())]
    Failed {
        /// What was tried.
        what: &'static str,
        /// On which.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    what: &'static str,
    path: PathBuf,
) -> impl FnOnce(E) -> PinError {
    move |source| PinError::Failed {
        what,
        path,
        source: io::Error::other(source),
    }
}

/// A directory of pins.
#[derive(Clone, Debug)]
pub(super) struct PinDir(PathBuf);

impl PinDir {
    /// Makes the directory if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, PinError> {
        fs::create_dir_all(path).map_err(failed("make", path.to_owned()))?;
        let statfs = rustix::fs::statfs(path).map_err(failed("look at", path.to_owned()))?;
        #[expect(
            clippy::useless_conversion,
            reason = "the type depends on the platform"
        )]
        if i64::from(statfs.f_type) != BPF_FS_MAGIC {
            return Err(PinError::NotBpfFs(path.to_owned()));
        }
        Ok(Self(path.to_owned()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{PREFIX}{name}"))
    }

    /// Whether everything is pinned.
    pub(super) fn is_whole(&self) -> bool {
        self.file(SETTINGS).exists()
    }

    pub(super) fn pin_map(&self, name: &str, map: &Map) -> Result<(), PinError> {
        let path = self.file(name);
        map.pin(&path).map_err(failed("pin", path))
    }

    pub(super) fn pin_witness(&self, witness: &mut Iter) -> Result<(), PinError> {
        let path = self.file(WITNESS);
        witness.pin(&path).map_err(failed("pin", path))
    }

    /// Pins the link that a descriptor of this process refers to.
    pub(super) fn pin_link(&self, program: &str, fd: RawFd) -> Result<(), PinError> {
        let path = self.file(&format!("{LINK}{program}"));
        obj_pin(fd, &path).map_err(failed("pin", path))
    }

    pub(super) fn map(&self, name: &str) -> Result<MapData, PinError> {
        let path = self.file(name);
        MapData::from_pin(&path).map_err(failed("read", path))
    }

    pub(super) fn witness(&self) -> Result<Iter, PinError> {
        let path = self.file(WITNESS);
        Iter::from_pin(&path).map_err(failed("read", path))
    }

    /// Returns the links, with the names of their programs.
    pub(super) fn links(&self) -> Result<Vec<(String, FdLink)>, PinError> {
        let mut links = Vec::new();
        for path in self.pins()? {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(program) = name.and_then(|it| it.strip_prefix(PREFIX)?.strip_prefix(LINK))
            else {
                continue;
            };
            let program = program.to_owned();
            let link = PinnedLink::from_pin(&path).map_err(failed("read", path))?;
            links.push((program, link.into()));
        }
        Ok(links)
    }

    /// Checks that what is pinned was loaded so.
    pub(super) fn check(&self, wanted: &Settings) -> Result<(), PinError> {
        let map = Map::Array(self.map(SETTINGS)?);
        let path = || self.file(SETTINGS);
        let array = Array::<_, Words>::try_from(map).map_err(failed("read", path()))?;
        let found = array.get(&0, 0).map_err(failed("read", path()))?;
        if found == words(wanted) {
            Ok(())
        } else {
            Err(PinError::Other(self.0.clone()))
        }
    }

    /// Pins the settings: everything else is pinned.
    pub(super) fn pin_settings(&self, map: Map, settings: &Settings) -> Result<(), PinError> {
        let path = || self.file(SETTINGS);
        let mut array = Array::<_, Words>::try_from(map).map_err(failed("write", path()))?;
        array
            .set(0, words(settings), 0)
            .map_err(failed("write", path()))?;
        array.pin(path()).map_err(failed("pin", path()))
    }

    fn pins(&self) -> Result<Vec<PathBuf>, PinError> {
        let entries = fs::read_dir(&self.0).map_err(failed("read", self.0.clone()))?;
        let paths = entries.flatten().map(|entry| entry.path());
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(PREFIX))
        };
        Ok(paths.filter(is_ours).collect())
    }

    /// Removes every pin, the settings first: half of them are none. Returns how many there were.
    pub(super) fn clear(&self) -> Result<usize, PinError> {
        let mut pins = self.pins()?;
        let settings = self.file(SETTINGS);
        pins.sort_by_key(|path| *path != settings);
        for path in &pins {
            fs::remove_file(path).map_err(failed("remove", path.clone()))?;
        }
        Ok(pins.len())
    }
}

/// Removes everything that is pinned in a directory, which detaches the programs, and the directory
/// if nothing else is in it. Returns how many pins there were.
///
/// # Errors
///
/// When it is not on a BPF file system, or a pin cannot be removed.
pub fn detach(path: &Path) -> Result<usize, PinError> {
    if !path.is_dir() {
        return Ok(0);
    }
    let count = PinDir::open(path)?.clear()?;
    // Others may have pins there.
    let _ = fs::remove_dir(path);
    Ok(count)
}

/// Returns a number that tells this eBPF object from others.
pub(super) fn digest(object: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish()
}

fn words(settings: &Settings) -> Words {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    [
        settings.digest,
        settings.cgroup_id,
        settings.grace_ns,
        pair(settings.scope, settings.ring_bytes),
        pair(settings.places, settings.stacks),
        u64::from(settings.all_records),
    ]
}

/// `bpf(BPF_OBJ_PIN)`. aya pins links of most kinds itself, and has no way to those of
/// `cgroup/setsockopt`.
#[expect(unsafe_code, reason = "no safe crate has this system call")]
fn obj_pin(fd: RawFd, path: &Path) -> io::Result<()> {
    /// The part of `union bpf_attr` for BPF_OBJ_* commands (linux/bpf.h).
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    const BPF_OBJ_PIN: libc::c_int = 6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr {
        pathname: path.as_ptr() as u64,
        bpf_fd: fd.cast_unsigned(),
        file_flags: 0,
    };
    // SAFETY: the attribute and the path outlive the call, which reads as many bytes of the former
    // as it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_PIN,
            &raw const attr,
            size_of::<Attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
