//! Where the program keeps what must outlive it.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Returns the folder, and makes it if there is none: then only its owner may use it.
pub(super) fn folder(option: Option<&Path>) -> anyhow::Result<PathBuf> {
    let folder = match option {
        Some(folder) => folder.to_owned(),
        None => default(|variable| std::env::var_os(variable).map(PathBuf::from))
            .context("there is no place to keep anything: set --state-dir DIRECTORY")?,
    };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    if let Err(error) = builder.create(&folder) {
        bail!(
            "cannot make the folder {}: {error}; name another one by --state-dir",
            folder.display()
        );
    }
    Ok(folder)
}

/// `STATE_DIRECTORY` is set by systemd (`systemd.exec(5)`). The others are those of the XDG Base
/// Directory Specification.
fn default(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|path| path.is_absolute());
    set("STATE_DIRECTORY")
        .or_else(|| Some(set("XDG_STATE_HOME")?.join("watertight")))
        .or_else(|| Some(set("HOME")?.join(".local/state/watertight")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_place_is_taken() {
        let place = |set: &[(&str, &str)]| {
            default(|name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, path)| PathBuf::from(path))
            })
        };
        assert_eq!(place(&[]), None);
        assert_eq!(
            place(&[("HOME", "/h")]),
            Some("/h/.local/state/watertight".into())
        );
        let both = [("HOME", "/h"), ("XDG_STATE_HOME", "/s")];
        assert_eq!(place(&both), Some("/s/watertight".into()));
        let relative = [("HOME", "/h"), ("XDG_STATE_HOME", "s")];
        assert_eq!(place(&relative), Some("/h/.local/state/watertight".into()));
        let all = [("HOME", "/h"), ("STATE_DIRECTORY", "/d")];
        assert_eq!(place(&all), Some("/d".into()));
    }
}
