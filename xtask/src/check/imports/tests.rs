use std::collections::HashMap;
use std::path::Path;

use super::circles;
use super::modules::Modules;

/// Returns the circles of a crate that consists of these files.
fn circles(files: &[(&str, &str)]) -> Vec<String> {
    let files: HashMap<&str, &str> = files.iter().copied().collect();
    let read = |path: &Path| Some((*files.get(path.to_str()?)?).to_owned());
    let modules = Modules::read(Path::new("src/lib.rs"), &read).expect("the crate is readable");
    circles::find(&modules)
        .iter()
        .map(|circle| circle.modules.join(" "))
        .collect()
}

#[test]
fn siblings_that_import_each_other_are_a_circle() {
    let found = circles(&[
        ("src/lib.rs", "mod agent; mod server;"),
        (
            "src/agent.rs",
            "use crate::server::Server; pub struct Agent;",
        ),
        ("src/server.rs", "pub struct Server(super::agent::Agent);"),
    ]);
    assert_eq!(found, ["crate::agent crate::server"]);
}

#[test]
fn imports_in_one_direction_are_none() {
    let found = circles(&[
        ("src/lib.rs", "mod agent; mod server; use agent::Agent;"),
        ("src/agent.rs", "use crate::server::{self, Server};"),
        ("src/server.rs", "use std::io; pub struct Server;"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn what_files_below_import_counts_for_the_folder() {
    let found = circles(&[
        ("src/lib.rs", "mod agent; mod server; mod wire;"),
        ("src/agent.rs", "mod dial;"),
        ("src/agent/dial.rs", "use crate::wire::Frame;"),
        ("src/wire.rs", "use crate::server::port; pub struct Frame;"),
        ("src/server/mod.rs", "pub mod port;"),
        (
            "src/server/port.rs",
            "fn f() { super::super::agent::dial::go() }",
        ),
    ]);
    assert_eq!(found, ["crate::agent crate::server crate::wire"]);
}

#[test]
fn siblings_deep_in_the_tree_are_checked_too() {
    let found = circles(&[
        ("src/lib.rs", "mod relay;"),
        ("src/relay.rs", "mod splice; mod streams;"),
        ("src/relay/splice.rs", "use super::streams::Streams;"),
        (
            "src/relay/streams.rs",
            "use crate::relay::splice::{Splice as S};",
        ),
    ]);
    assert_eq!(found, ["crate::relay::splice crate::relay::streams"]);
}

#[test]
fn a_reexport_does_not_hide_an_import() {
    let found = circles(&[
        (
            "src/lib.rs",
            "mod agent; mod server; pub use server::Server;",
        ),
        ("src/agent.rs", "use crate::Server;"),
        ("src/server.rs", "mod inner; pub use inner::Server;"),
        (
            "src/server/inner.rs",
            "use crate::agent; pub struct Server;",
        ),
    ]);
    assert_eq!(found, ["crate::agent crate::server"]);
}

#[test]
fn a_path_in_a_macro_or_an_attribute_is_an_import() {
    let found = circles(&[
        ("src/lib.rs", "mod a; mod b; mod c;"),
        ("src/a.rs", "fn f() { println!(\"{}\", crate::b::NAME) }"),
        ("src/b.rs", "macro_rules! m { () => { $crate::c::f() } }"),
        (
            "src/c.rs",
            "#[arg(value_parser = crate::a::parse)] struct C;",
        ),
    ]);
    assert_eq!(found, ["crate::a crate::b crate::c"]);
}

#[test]
fn a_parent_and_its_children_may_import_each_other() {
    let found = circles(&[
        ("src/lib.rs", "mod mux; pub struct Id;"),
        (
            "src/mux.rs",
            "mod table; use table::Table; pub struct Config;",
        ),
        (
            "src/mux/table.rs",
            "use super::Config; use crate::Id; pub struct Table;",
        ),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn tests_are_left_out() {
    let found = circles(&[
        ("src/lib.rs", "mod a; mod b; #[cfg(test)] mod tests;"),
        ("src/a.rs", "use crate::b::B;"),
        (
            "src/b.rs",
            "pub struct B; #[cfg(test)] mod tests { use crate::a; }
             impl B { #[cfg(test)] fn f() { crate::a::f() } }",
        ),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn modules_within_a_file_and_with_a_path_are_followed() {
    let found = circles(&[
        (
            "src/lib.rs",
            "mod a { pub mod deep; } #[path = \"../other/b.rs\"] mod b;",
        ),
        ("src/a/deep.rs", "use crate::b::c::C;"),
        ("src/../other/b.rs", "pub mod c;"),
        ("src/../other/c.rs", "use crate::a::deep; pub struct C;"),
    ]);
    assert_eq!(found, ["crate::a crate::b"]);
}

#[test]
fn names_of_other_crates_are_none_of_ours() {
    let found = circles(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a.rs", "use b::B; use anyhow; use ::b::C;"),
        ("src/b.rs", "use crate::a;"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}
