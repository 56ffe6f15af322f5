//! Finds the eBPF object to embed and refuses one that is not built from the sources beside it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "../tracer-ebpf/digest.rs"]
mod digest;

/// Names another object to embed: CI sets it to the one that `cargo xtask ebpf --check` has just
/// built.
const OVERRIDE: &str = "TRACER_EBPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let object = match env::var_os(OVERRIDE) {
        Some(path) => PathBuf::from(path),
        None => committed()?,
    };
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-env=TRACER_EBPF_EMBEDDED={}", object.display());
    Ok(())
}

fn committed() -> Result<PathBuf, Box<dyn Error>> {
    let ebpf = Path::new(&env::var("CARGO_MANIFEST_DIR")?)
        .join("../tracer-ebpf")
        .canonicalize()?;
    for watched in ["Cargo.toml", "src", "prebuilt"] {
        println!("cargo::rerun-if-changed={}", ebpf.join(watched).display());
    }
    let manifest = fs::read_to_string(ebpf.join("prebuilt/manifest.toml"))
        .map_err(|error| format!("no committed eBPF object ({error}): run `cargo xtask ebpf`"))?;
    let wanted = digest::of_sources(&ebpf)?;
    if !manifest.contains(&format!("sources = \"{wanted}\"")) {
        return Err(
            "the sources in tracer-ebpf have changed since prebuilt/tracer.bpf.o was built: run `cargo xtask ebpf`"
                .into(),
        );
    }
    Ok(ebpf.join("prebuilt/tracer.bpf.o"))
}
