//! The modules of one crate, and what their paths lead to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::{Expr, ExprLit, Item, ItemMod, Lit, Meta};

use super::paths::{Named, Paths};

/// Re-exports that are followed one after the other; a name may lead to itself.
const REEXPORTS_MAX: usize = 8;

/// The root has the index 0.
#[derive(Debug, Default)]
pub(super) struct Modules(Vec<Module>);

#[derive(Debug)]
struct Module {
    name: String,
    file: PathBuf,
    parent: usize,
    children: BTreeMap<String, usize>,
    /// What each name leads to that a `use` brings here.
    bindings: BTreeMap<String, Vec<String>>,
    named: Vec<Named>,
}

/// One module names something of another.
#[derive(Debug, Clone)]
pub(super) struct Import<'a> {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) file: &'a Path,
    pub(super) line: usize,
    pub(super) path: String,
}

/// Where a module's code is.
struct Location {
    file: PathBuf,
    /// Where the files of its children are.
    directory: PathBuf,
}

/// Returns a file's text, if there is such a file.
type ReadFile<'a> = &'a dyn Fn(&Path) -> Option<String>;

impl Modules {
    /// Reads a crate from its root file on.
    pub(super) fn read(root: &Path, read: ReadFile<'_>) -> Result<Self> {
        let directory = root.parent().unwrap_or(Path::new("")).to_owned();
        let location = Location {
            file: root.to_owned(),
            directory,
        };
        let mut modules = Self::default();
        modules.add_file("crate", 0, &location, read)?;
        Ok(modules)
    }

    fn add_file(
        &mut self,
        name: &str,
        parent: usize,
        location: &Location,
        read: ReadFile<'_>,
    ) -> Result<usize> {
        let shown = location.file.display();
        let text = read(&location.file).with_context(|| format!("cannot read {shown}"))?;
        let file = syn::parse_file(&text).with_context(|| format!("cannot parse {shown}"))?;
        self.add(name, parent, location, &file.items, read)
    }

    fn add(
        &mut self,
        name: &str,
        parent: usize,
        location: &Location,
        items: &[Item],
        read: ReadFile<'_>,
    ) -> Result<usize> {
        let Paths { named, modules } = Paths::of(items);
        let bindings = named
            .iter()
            .filter_map(|named| Some((named.binds.clone()?, named.segments.clone())))
            .collect();
        let index = self.0.len();
        self.0.push(Module {
            name: name.to_owned(),
            file: location.file.clone(),
            parent,
            children: BTreeMap::new(),
            bindings,
            named,
        });
        for module in modules {
            let name = module.ident.to_string();
            let directory = location.directory.join(&name);
            let child = if let Some((_, items)) = &module.content {
                let file = location.file.clone();
                self.add(&name, index, &Location { file, directory }, items, read)?
            } else {
                self.add_file(&name, index, &find(module, location, read), read)?
            };
            if let Some(module) = self.0.get_mut(index) {
                module.children.insert(name, child);
            }
        }
        Ok(index)
    }

    /// Returns what the modules name of each other.
    pub(super) fn imports(&self) -> impl Iterator<Item = Import<'_>> {
        self.0.iter().enumerate().flat_map(move |(from, module)| {
            module.named.iter().filter_map(move |named| {
                Some(Import {
                    from,
                    to: self.resolve(from, &named.segments, REEXPORTS_MAX)?,
                    file: &module.file,
                    line: named.line,
                    path: named.segments.join("::"),
                })
            })
        })
    }

    /// Returns a module's path from the crate on.
    pub(super) fn path(&self, index: usize) -> String {
        let names: Vec<&str> = self
            .line(index)
            .into_iter()
            .filter_map(|index| Some(self.0.get(index)?.name.as_str()))
            .collect();
        names.join("::")
    }

    /// Returns the modules from the root down to this one.
    pub(super) fn line(&self, index: usize) -> Vec<usize> {
        let mut line = vec![index];
        let mut at = index;
        while at != 0 {
            at = self.parent(at);
            line.push(at);
        }
        line.reverse();
        line
    }

    fn parent(&self, index: usize) -> usize {
        self.0.get(index).map_or(0, |module| module.parent)
    }

    /// Returns the module that has what a path names, if that is in this crate.
    fn resolve(&self, from: usize, path: &[String], reexports: usize) -> Option<usize> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => 0,
            "self" => from,
            "super" => self.parent(from),
            _ => {
                rest = path;
                from
            }
        };
        while let Some((segment, after)) = rest.split_first() {
            let module = self.0.get(at)?;
            if segment == "super" {
                at = module.parent;
            } else if let Some(child) = module.children.get(segment) {
                at = *child;
            } else if let Some(binding) = module.bindings.get(segment)
                && let Some(reexports) = reexports.checked_sub(1)
            {
                let path = [binding, after].concat();
                return self.resolve(at, &path, reexports).or(Some(at));
            } else if rest.len() == path.len() {
                // Another crate's name, or one that this module itself defines.
                return None;
            } else {
                break;
            }
            rest = after;
        }
        Some(at)
    }
}

/// Finds the file of a module that is declared without its body.
fn find(module: &ItemMod, location: &Location, read: ReadFile<'_>) -> Location {
    let name = module.ident.to_string();
    let nested = |file: PathBuf| Location {
        directory: file.parent().unwrap_or(Path::new("")).to_owned(),
        file,
    };
    if let Some(path) = path_attribute(module) {
        let directory = location.file.parent().unwrap_or(Path::new(""));
        return nested(directory.join(path));
    }
    let inside = location.directory.join(&name).join("mod.rs");
    if read(&inside).is_some() {
        return nested(inside);
    }
    Location {
        file: location.directory.join(format!("{name}.rs")),
        directory: location.directory.join(name),
    }
}

/// Returns the value of `#[path = "..."]`.
fn path_attribute(module: &ItemMod) -> Option<String> {
    module
        .attrs
        .iter()
        .find_map(|attribute| match &attribute.meta {
            Meta::NameValue(meta) if meta.path.is_ident("path") => match &meta.value {
                Expr::Lit(ExprLit {
                    lit: Lit::Str(path),
                    ..
                }) => Some(path.value()),
                _ => None,
            },
            Meta::NameValue(_) | Meta::List(_) | Meta::Path(_) => None,
        })
}
