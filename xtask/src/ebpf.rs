//! `cargo xtask ebpf`: builds the eBPF object and writes it, with a manifest, to
//! `tracer-ebpf/prebuilt`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::build::elf::{Builder, SectionData};
use sha2::{Digest, Sha256};

use crate::shell::{cargo, read, root, run, target};

#[path = "../../tracer-ebpf/digest.rs"]
mod digest;

const TRIPLE: &str = "bpfel-unknown-none";
/// With atomics that return the old value (Linux 5.12).
const CPU: &str = "-Ctarget-cpu=v3";
const LINKER_VERSION: &str = "0.13.0";
/// Distributions' rustc with `core` for BPF stands here, beside the one of rustup that comes first
/// in PATH.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Builds into target/ only and compares with the committed object, which stays as it is.
    #[arg(long)]
    check: bool,
    /// Installs bpf-linker into target/ first, for the LLVM of the compiler that will be used.
    #[arg(long)]
    install_linker: bool,
}

/// A compiler that can make eBPF.
struct Toolchain {
    rustc: OsString,
    /// `core` comes from sources: a nightly with rust-src.
    build_std: bool,
    version: String,
    llvm: String,
}

pub(crate) fn run_ebpf(args: &Args) -> Result<()> {
    let toolchain = find_toolchain()?;
    if args.install_linker {
        install_linker(&toolchain)?;
    }
    let linker = find_linker(&toolchain)?;
    let linker_version = read(Command::new(&linker).arg("--version"))?
        .trim()
        .to_owned();
    let built = build(&toolchain, &linker)?;
    let object = strip(&fs::read(&built)?)?;
    let fresh = fresh_object();
    fs::write(&fresh, &object).with_context(|| format!("cannot write {}", fresh.display()))?;
    let manifest = manifest(&toolchain, &linker_version, &object)?;
    let prebuilt = root().join("tracer-ebpf/prebuilt");
    if args.check {
        return compare(&prebuilt, &manifest, &object);
    }
    fs::create_dir_all(&prebuilt)?;
    fs::write(prebuilt.join("tracer.bpf.o"), &object)?;
    fs::write(prebuilt.join("manifest.toml"), manifest)?;
    println!(
        "wrote tracer-ebpf/prebuilt ({} bytes): commit it",
        object.len()
    );
    Ok(())
}

/// Where the object is that was built last.
fn fresh_object() -> PathBuf {
    target().join("tracer.bpf.o")
}

fn find_toolchain() -> Result<Toolchain> {
    let named = std::env::var_os("EBPF_RUSTC");
    let system = Some(OsString::from(SYSTEM_RUSTC)).filter(|path| Path::new(path).exists());
    for rustc in [named, system].into_iter().flatten() {
        if has_core(&rustc) {
            return toolchain(rustc, false);
        }
    }
    let nightly = read(Command::new("rustup").args(["which", "rustc", "--toolchain", "nightly"]));
    if let Ok(rustc) = nightly
        && has_core_sources(Path::new(rustc.trim()))
    {
        return toolchain(rustc.trim().into(), true);
    }
    bail!(
        "no compiler for {TRIPLE} here. Either (Debian 12): apt-get install --no-install-recommends rustc-web \
         libstd-rust-web-dev-bpf, or: rustup toolchain install nightly --component rust-src. \
         EBPF_RUSTC names another rustc that has core for it"
    )
}

fn has_core(rustc: &OsString) -> bool {
    read(Command::new(rustc).args(["--print", "target-libdir", "--target", TRIPLE])).is_ok_and(
        |path| {
            fs::read_dir(path.trim()).is_ok_and(|mut entries| {
                entries.any(|entry| {
                    entry.is_ok_and(|entry| {
                        entry.file_name().to_string_lossy().starts_with("libcore-")
                    })
                })
            })
        },
    )
}

fn has_core_sources(rustc: &Path) -> bool {
    read(Command::new(rustc).args(["--print", "sysroot"])).is_ok_and(|sysroot| {
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core")
            .exists()
    })
}

fn toolchain(rustc: OsString, build_std: bool) -> Result<Toolchain> {
    let told = read(Command::new(&rustc).arg("-vV"))?;
    let field = |name: &str| {
        told.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
            .with_context(|| format!("rustc -vV does not tell its {name}"))
    };
    let llvm = field("LLVM version:")?;
    let llvm = llvm.split('.').next().unwrap_or_default().to_owned();
    Ok(Toolchain {
        version: told.lines().next().unwrap_or_default().to_owned(),
        rustc,
        build_std,
        llvm,
    })
}

fn linker_root(toolchain: &Toolchain) -> PathBuf {
    target().join(format!(
        "tools/bpf-linker-{LINKER_VERSION}-llvm-{}",
        toolchain.llvm
    ))
}

fn install_linker(toolchain: &Toolchain) -> Result<()> {
    let llvm = &toolchain.llvm;
    let folder = linker_root(toolchain);
    if folder.join("bin/bpf-linker").exists() {
        return Ok(());
    }
    run(cargo()
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}"), "--root"])
        .arg(folder))
    .with_context(|| {
        format!(
            "bpf-linker needs LLVM {llvm}: apt-get install llvm-{llvm}-dev libpolly-{llvm}-dev libzstd-dev zlib1g-dev"
        )
    })
}

fn find_linker(toolchain: &Toolchain) -> Result<PathBuf> {
    let own = linker_root(toolchain).join("bin/bpf-linker");
    if own.exists() {
        return Ok(own);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.exists())
        .context("no bpf-linker here: cargo xtask ebpf --install-linker")
}

fn build(toolchain: &Toolchain, linker: &Path) -> Result<PathBuf> {
    let mut command = cargo_for(toolchain, "build");
    command
        .arg("--release")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(linker));
    run(&mut command)?;
    Ok(output().join(TRIPLE).join("release/tracer-ebpf"))
}

/// Lints the programs for their own target, with the clippy of the compiler that builds them.
/// Returns why it cannot, if it cannot.
pub(crate) fn lint() -> Result<Option<&'static str>> {
    let Ok(toolchain) = find_toolchain() else {
        return Ok(Some(
            "no compiler for bpfel-unknown-none; `cargo xtask ebpf` says how to get one",
        ));
    };
    let driver = Path::new(&toolchain.rustc).with_file_name("clippy-driver");
    if !driver.exists() {
        return Ok(Some(
            "the compiler for eBPF has no clippy. Debian 12: apt-get install rust-web-clippy; \
             rustup: rustup component add clippy --toolchain nightly",
        ));
    }
    let mut command = cargo_for(&toolchain, "check");
    command.env("RUSTC_WORKSPACE_WRAPPER", driver).env(
        "CARGO_ENCODED_RUSTFLAGS",
        [CPU, "-Dwarnings"].join("\u{1f}"),
    );
    run(&mut command)?;
    Ok(None)
}

/// Returns a command that runs cargo over the programs.
fn cargo_for(toolchain: &Toolchain, task: &str) -> Command {
    let mut command = cargo();
    command
        .args([task, "--locked", "--package", "tracer-ebpf"])
        .args(["--bin", "tracer-ebpf", "--target", TRIPLE, "--target-dir"])
        .arg(output())
        .env("RUSTC", &toolchain.rustc)
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTUP_TOOLCHAIN");
    // aya-ebpf and our arithmetic on addresses need `asm_experimental_arch`, our atomics
    // `core_intrinsics`.
    command.env("RUSTC_BOOTSTRAP", "1");
    if toolchain.build_std {
        command.args(["-Z", "build-std=core"]);
    }
    command
}

fn output() -> PathBuf {
    target().join("ebpf")
}

fn flags(linker: &Path) -> String {
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    [
        "-Cdebuginfo=2".to_owned(),
        "-Cpanic=abort".to_owned(),
        CPU.to_owned(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // Paths end up in BTF's line information: no two clones would give the same object.
        format!("--remap-path-prefix={}=/watertight", root().display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
    ]
    .join("\u{1f}")
}

/// Takes the DWARF out, which only debuggers read. BTF stays.
fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.to_vec();
        section.delete = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections among those of symbols; the writer wants them apart.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

fn manifest(toolchain: &Toolchain, linker: &str, object: &[u8]) -> Result<String> {
    let mut text = String::from(
        "# Written by `cargo xtask ebpf`. A build refuses an object whose sources differ.\n",
    );
    writeln!(
        text,
        "sources = \"{}\"",
        digest::of_sources(&root().join("tracer-ebpf"))?
    )?;
    writeln!(text, "object = \"{}\"", sha256(object))?;
    writeln!(text, "rustc = \"{}\"", toolchain.version)?;
    writeln!(text, "linker = \"{linker}\"")?;
    Ok(text)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// Compares a fresh build with what is committed. The same tools must give the same bytes; others
/// need not.
fn compare(prebuilt: &Path, manifest: &str, object: &[u8]) -> Result<()> {
    let committed = fs::read_to_string(prebuilt.join("manifest.toml"))?;
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
            .to_owned()
    };
    let same = |name: &str| field(&committed, name) == field(manifest, name);
    ensure!(
        same("sources"),
        "the committed object is of other sources: run `cargo xtask ebpf` and commit tracer-ebpf/prebuilt"
    );
    ensure!(
        field(&committed, "object")
            == format!(
                "object = \"{}\"",
                sha256(&fs::read(prebuilt.join("tracer.bpf.o"))?)
            ),
        "tracer-ebpf/prebuilt/tracer.bpf.o is not the object that its manifest names"
    );
    if !(same("rustc") && same("linker")) {
        println!("the committed object was built with other tools; not compared byte by byte");
        return Ok(());
    }
    ensure!(
        fs::read(prebuilt.join("tracer.bpf.o"))? == object,
        "the same tools gave another object than the committed one: the build is not reproducible here"
    );
    println!(
        "the committed object is what its sources give ({} bytes)",
        object.len()
    );
    Ok(())
}
