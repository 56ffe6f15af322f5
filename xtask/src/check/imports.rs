//! That no modules of a crate import each other in a circle.
//!
//! The rule holds between siblings, at every level of a crate's tree: for two modules of one
//! parent, one imports the other when any file below the one names anything below the other, by
//! `use` or by any other path. A name is followed through the re-exports on its way. A parent may
//! import its children and they may import what the parent defines; that is how Rust nests modules.
//! Code under `#[cfg(test)]` is left out.

mod circles;
mod modules;
mod paths;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::circles::Circle;
use self::modules::Modules;
use crate::shell::{cargo, read, root};

/// Checks every library and binary of the workspace.
pub(super) fn run() -> Result<()> {
    let crates = crates()?;
    let mut found = String::new();
    for (name, file) in &crates {
        let modules = Modules::read(file, &|path| std::fs::read_to_string(path).ok())?;
        for circle in circles::find(&modules) {
            describe(&mut found, name, &circle)?;
        }
    }
    ensure!(
        found.is_empty(),
        "modules import each other in a circle\n{found}"
    );
    println!("imports: no circle in {} crates", crates.len());
    Ok(())
}

/// Returns the libraries and binaries of the workspace, each with its root file.
fn crates() -> Result<Vec<(String, PathBuf)>> {
    let metadata = read(cargo().args(["metadata", "--no-deps", "--locked", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let list = |value: &Value, name: &str| -> Vec<Value> {
        let list = value.get(name).and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let mut crates = Vec::new();
    for target in list(&metadata, "packages")
        .iter()
        .flat_map(|package| list(package, "targets"))
    {
        let kinds = list(&target, "kind");
        if kinds.iter().any(|kind| kind == "lib" || kind == "bin") {
            let field = |name: &str| {
                target
                    .get(name)
                    .and_then(Value::as_str)
                    .context("cargo metadata is incomplete")
            };
            crates.push((field("name")?.to_owned(), field("src_path")?.into()));
        }
    }
    ensure!(!crates.is_empty(), "cargo metadata names no crates");
    Ok(crates)
}

fn describe(to: &mut String, name: &str, circle: &Circle<'_>) -> std::fmt::Result {
    writeln!(to, "{name}: {}", circle.modules.join(", "))?;
    for edge in &circle.edges {
        writeln!(to, "  {} imports {}", edge.from, edge.to)?;
        for import in &edge.imports {
            let file = relative(import.file);
            writeln!(to, "    {file}:{}: {}", import.line, import.path)?;
        }
    }
    Ok(())
}

fn relative(file: &Path) -> String {
    file.strip_prefix(root())
        .unwrap_or(file)
        .display()
        .to_string()
}
