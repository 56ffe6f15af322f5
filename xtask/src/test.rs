//! `cargo xtask test`: every test; as root also those that load eBPF programs. The tunnel's tests
//! over real sockets run under the tracer then: a socket that outlives its request fails them,
//! whatever the test itself looks at.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::shell::{self, cargo, target};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fails when a test that needs privileges cannot run, instead of skipping it. Set in CI.
    #[arg(long, env = "CI", value_parser = clap::builder::FalseyValueParser::new())]
    strict: bool,
    /// Passed on to `cargo test`, such as a test's name.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// What cargo starts instead of each test binary.
#[derive(Debug, clap::Args)]
pub(crate) struct BinaryArgs {
    binary: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Tells the privileged tests that they may not be skipped.
const STRICT: &str = "WATERTIGHT_TEST_STRICT";

/// The chore that cargo starts test binaries through.
pub(crate) const RUN_BINARY: &str = "__test-binary";

/// The test binary that is audited: `tunnel/tests/path`.
const AUDITED: &str = "path-";

/// Stands for the report of an audit that was skipped.
const SKIPPED: &str = "{\"verdict\": \"skipped\"}\n";

/// The exit status of `tracer run` where this machine does not let it trace.
const CANNOT_TRACE: i32 = 5;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = rustix::process::geteuid().is_root();
    ensure!(
        root || !args.strict,
        "the strict tests load eBPF programs and need root: sudo -E env PATH=\"$PATH\" cargo xtask test"
    );
    let mut command: Command = cargo();
    command.args(["test", "--workspace", "--locked", "--all-features"]);
    let report = report();
    if root {
        remove_old(&report)?;
        shell::run(cargo().args(["build", "--locked", "--package", "tracer-user", "--bins"]))?;
        let own = std::env::current_exe()?;
        let runner = [own.to_str().context("a path is not UTF-8")?, RUN_BINARY];
        command.args([
            "--config",
            &format!("target.'cfg(all())'.runner = {runner:?}"),
        ]);
    } else {
        eprintln!(
            "skipped: the audit of the tunnel's tests loads eBPF programs and needs root (sudo -E)"
        );
    }
    if !args.rest.is_empty() {
        command.arg("--").args(&args.rest);
    }
    if args.strict {
        command.env(STRICT, "1");
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        return Ok(ExitCode::FAILURE);
    }
    if root {
        require_audit(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns where the report of the audit goes.
fn report() -> PathBuf {
    target().join("tunnel-tests.audit.json")
}

fn remove_old(report: &Path) -> Result<()> {
    match fs::remove_file(report) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", report.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Requires that the audit ran, or was skipped with its reason. Whatever arguments the tests are
/// given, cargo starts the audited binary, unless it has another name.
fn require_audit(report: &Path) -> Result<()> {
    ensure!(
        report.exists(),
        "no test binary was audited: the name of none begins with {AUDITED}"
    );
    Ok(())
}

/// Runs one test binary, the tunnel's own tests under the tracer.
pub(crate) fn run_binary(args: &BinaryArgs) -> Result<ExitCode> {
    let name = args.binary.file_name().unwrap_or_default();
    let mut plain = Command::new(&args.binary);
    plain.args(&args.rest);
    if name.to_string_lossy().starts_with(AUDITED) {
        let report = report();
        let status = audit(args, &report)?;
        if status.code() != Some(CANNOT_TRACE) {
            if status.success() {
                check(&report, args.rest.is_empty())
                    .with_context(|| format!("the audit is in {}", report.display()))?;
            }
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(ExitCode::from(code.unwrap_or(1)));
        }
        ensure!(
            std::env::var_os(STRICT).is_none(),
            "the tunnel's tests must run under the tracer, which this machine does not let trace"
        );
        fs::write(&report, SKIPPED)
            .with_context(|| format!("cannot write {}", report.display()))?;
        eprintln!(
            "skipped: the audit of the tunnel's tests; the tracer says above what is missing"
        );
    }
    Err(plain.exec()).with_context(|| format!("cannot run {}", args.binary.display()))
}

fn audit(args: &BinaryArgs, report: &Path) -> Result<ExitStatus> {
    let tracer = target().join("debug/tracer");
    let mut command = Command::new(&tracer);
    command.arg("run").arg("--json").arg(report).arg("--");
    command.arg(&args.binary).args(&args.rest);
    command
        .status()
        .with_context(|| format!("cannot run {}", tracer.display()))
}

/// Requires that the evidence is complete, and when all tests ran that there is some.
fn check(report: &Path, all: bool) -> Result<()> {
    let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    let field = |path| report.pointer(path).unwrap_or(&Value::Null);
    let (verdict, agrees) = (field("/verdict"), field("/witness/agrees"));
    ensure!(
        verdict == "clean" && *agrees == Value::Bool(true),
        "the verdict on the tunnel's tests is {verdict} and the witness agrees: {agrees}"
    );
    let streams = field("/owners/streams_ended").as_u64().unwrap_or(0);
    ensure!(
        !all || streams >= STREAMS_MIN,
        "the audit saw {streams} streams of the tunnel's tests end; there are thousands"
    );
    Ok(())
}

/// All tests together open many more.
const STREAMS_MIN: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_that_left_no_report_fails() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = folder.path().join("audit.json");
        remove_old(&report).expect("there is none");
        assert!(require_audit(&report).is_err());

        fs::write(&report, SKIPPED).expect("the folder is writable");
        require_audit(&report).expect("there is one");

        // The report of an earlier run is no evidence for this one.
        remove_old(&report).expect("it can be removed");
        assert!(require_audit(&report).is_err());
    }
}
