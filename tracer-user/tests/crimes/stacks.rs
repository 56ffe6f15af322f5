//! Why there is no stack.

use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::case;
use crate::commands::status_of;

pub(crate) fn trials(skipped: bool) -> Vec<Trial> {
    let privileged =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(skipped);
    vec![
        privileged("no_stack_has_its_reason", no_stack_has_its_reason)
            .with_ignored_flag(skipped || case::lacks("setpriv")),
    ]
}

fn report(json: &Path) -> Result<Value, Failed> {
    Ok(serde_json::from_str(&fs::read_to_string(json)?)?)
}

fn no_stack_has_its_reason() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let json = folder.path().join("report.json");
    let mut audit = Command::new("setpriv");
    audit.arg("--bounding-set=-sys_admin,-checkpoint_restore");
    audit.args([env!("CARGO_BIN_EXE_tracer"), "run", "--stacks"]);
    audit.args(["--grace", "300ms", "--json"]).arg(&json);
    audit.arg("--").arg(std::env::current_exe()?);
    audit.args([case::FIXTURE, "close_wait_left_open"]);
    let text = status_of(&mut audit, case::LEAK)?;
    let found = &report(&json)?["findings"][0];
    let reason = found["stack_gap"].as_str().unwrap_or_default();
    let is_told = text.contains("no stack: ") && reason.contains("CAP_CHECKPOINT_RESTORE");
    if !is_told || !found["stack"].is_null() {
        return Err(format!("{text}\n{found}").into());
    }
    Ok(())
}
