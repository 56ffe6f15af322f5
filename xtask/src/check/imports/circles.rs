//! Circles among sibling modules.

use std::collections::{BTreeMap, BTreeSet};

use super::modules::{Import, Modules};

/// Siblings of which each imports each other, directly or by way of the others.
#[derive(Debug)]
pub(super) struct Circle<'a> {
    pub(super) modules: Vec<String>,
    pub(super) edges: Vec<Edge<'a>>,
}

/// The imports from one module of a circle, or below it, to another.
#[derive(Debug)]
pub(super) struct Edge<'a> {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) imports: Vec<Import<'a>>,
}

/// The imports among siblings, by the pair.
type Edges<'a> = BTreeMap<(usize, usize), Vec<Import<'a>>>;

pub(super) fn find(modules: &Modules) -> Vec<Circle<'_>> {
    let mut edges = Edges::new();
    for import in modules.imports() {
        if let Some(pair) = siblings(modules, &import) {
            edges.entry(pair).or_default().push(import);
        }
    }
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for from in edges.keys().map(|(from, _)| *from) {
        let members: BTreeSet<usize> = reached(&edges, from)
            .into_iter()
            .filter(|to| reached(&edges, *to).contains(&from))
            .collect();
        if !members.is_empty() && seen.insert(members.clone()) {
            circles.push(circle(modules, &edges, &members));
        }
    }
    circles
}

/// Returns the siblings that an import goes between; `None` when the one module is below the other.
fn siblings(modules: &Modules, import: &Import<'_>) -> Option<(usize, usize)> {
    let (from, to) = (modules.line(import.from), modules.line(import.to));
    from.into_iter()
        .zip(to)
        .find(|(ours, theirs)| ours != theirs)
}

/// Returns the modules that can be reached by at least one import.
fn reached(edges: &Edges<'_>, from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(at) = next.pop() {
        let imported = edges.keys().filter(|(from, _)| *from == at);
        next.extend(imported.map(|(_, to)| *to).filter(|to| reached.insert(*to)));
    }
    reached
}

fn circle<'a>(modules: &Modules, edges: &Edges<'a>, members: &BTreeSet<usize>) -> Circle<'a> {
    let edges = edges
        .iter()
        .filter(|((from, to), _)| members.contains(from) && members.contains(to))
        .map(|((from, to), imports)| Edge {
            from: modules.path(*from),
            to: modules.path(*to),
            imports: imports.clone(),
        })
        .collect();
    Circle {
        modules: members.iter().map(|index| modules.path(*index)).collect(),
        edges,
    }
}
