//! The digest of the eBPF object's sources, used by the build script that checks the committed
//! object against them and by the task that builds it.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Returns the SHA-256 of `Cargo.toml` and everything under `src` of the crate at `root`, as
/// hexadecimal text. Names count as well as contents.
///
/// # Errors
///
/// When a file cannot be read.
pub(crate) fn of_sources(root: &Path) -> io::Result<String> {
    let mut files = vec![root.join("Cargo.toml")];
    collect(&root.join("src"), &mut files)?;
    files.sort();
    let mut sha = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        let contents = fs::read(&file)?;
        sha.update(format!("{}\0{}\0", name.display(), contents.len()));
        sha.update(contents);
    }
    Ok(sha.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
