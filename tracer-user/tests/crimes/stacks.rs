//! Stacks of programs without symbols, and why there is none.

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
        privileged(
            "a_stripped_go_program_names_its_opener",
            a_stripped_go_program_names_its_opener,
        )
        .with_ignored_flag(skipped || case::lacks("go")),
        privileged("no_stack_has_its_reason", no_stack_has_its_reason)
            .with_ignored_flag(skipped || case::lacks("setpriv")),
    ]
}

/// A client that makes a connection for each request, and its server.
const GO: &str = r#"
package main

import ("fmt"; "net"; "time")

//go:noinline
func get(address string) net.Conn {
    conn, err := net.Dial("tcp", address)
    if err != nil { panic(err) }
    fmt.Fprintln(conn, "hello")
    if _, err = fmt.Fscanln(conn, new(string)); err != nil { panic(err) }
    return conn
}

func main() {
    listener, err := net.Listen("tcp", "127.0.0.1:0")
    if err != nil { panic(err) }
    go func() {
        for {
            conn, err := listener.Accept()
            if err != nil { return }
            go func() {
                var line string
                fmt.Fscanln(conn, &line)
                fmt.Fprintln(conn, line)
            }()
        }
    }()
    var kept []net.Conn
    for i := 0; i < 50; i++ {
        kept = append(kept, get(listener.Addr().String()))
        time.Sleep(40 * time.Millisecond)
    }
    for _, conn := range kept { conn.Close() }
}
"#;

fn build(folder: &Path) -> Result<std::path::PathBuf, Failed> {
    let (source, program) = (folder.join("main.go"), folder.join("stripped"));
    fs::write(&source, GO)?;
    let mut build = Command::new("go");
    build.args(["build", "-ldflags=-s -w", "-o"]).arg(&program);
    build.arg(&source).env("GO111MODULE", "off");
    build.env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/go-cache"));
    status_of(&mut build, 0)?;
    Ok(program)
}

fn report(json: &Path) -> Result<Value, Failed> {
    Ok(serde_json::from_str(&fs::read_to_string(json)?)?)
}

fn a_stripped_go_program_names_its_opener() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let program = build(folder.path())?;
    let json = folder.path().join("report.json");
    let mut audit = crate::commands::tracer();
    audit.args(["run", "--stacks", "--grace", "300ms"]);
    audit.args(["--pile-up-after", "500ms", "--pile-up", "3"]);
    audit.arg("--json").arg(&json).arg("--").arg(&program);
    let text = status_of(&mut audit, case::LEAK)?;
    let line = GO.lines().position(|line| line.contains("net.Dial("));
    let opener = format!("main.get at main.go:{}", line.ok_or("no such line")? + 1);
    let report = report(&json)?;
    let mut groups = report["groups"].as_array().into_iter().flatten();
    let group = groups.find(|group| group["kind"] == "pile-up");
    let group = group.ok_or("no pile")?;
    let advice = group["advice"].as_str().unwrap_or_default();
    let calls = group["stack"].as_array().ok_or("no stack")?;
    let are_named = calls.iter().all(|call| call["function"].is_string());
    let says_so = text.contains(&format!("; opened by {opener}\n"));
    if !advice.ends_with(&opener) || !are_named || !says_so || !text.contains("opened in main.get")
    {
        return Err(format!("{text}\n{group}").into());
    }
    Ok(())
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
