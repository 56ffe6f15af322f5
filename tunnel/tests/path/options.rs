//! Every option in every source: what is missing, empty or wrong ends the program with a message
//! that names it.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::child::command;

/// A value that no option takes.
const WRONG: &str = "no such value!";

/// Returns the options of a command and whether each is a switch, from its own help.
fn options(subcommand: &str) -> Vec<(String, bool)> {
    let help = command(&[subcommand, "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let lines = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let rest = line.strip_prefix("--").or_else(|| {
            // A short form stands before.
            line.split_once(", --").map(|(_, rest)| rest)
        })?;
        let (name, value) = rest.split_at_checked(rest.find([' ', '['])?)?;
        // An option that a sentence names may stand at the beginning of a line, too.
        let is_option = value.trim_start().starts_with(['<', '[']);
        let is_name =
            |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        if !is_option || !name.chars().all(is_name) {
            return None;
        }
        let is_switch = value.starts_with('[');
        Some((name.to_owned(), is_switch))
    });
    let options: Vec<_> = lines.collect();
    assert!(options.len() > 10, "{help}");
    options
}

/// Returns what the program says before it ends by itself with a failure.
fn refuses(command: &mut Command, what: &str) -> String {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    let status = status.unwrap_or_else(|| panic!("{what}: it starts: {said}"));
    assert!(!status.success(), "{what}: {said}");
    said
}

fn base(subcommand: &str) -> Command {
    let mut command = match subcommand {
        "server" => command(&["server"]),
        _ => command(&["agent"]),
    };
    // So that nothing but the option is wrong, and that none listens if it were taken.
    if subcommand == "server" {
        command.env("TUNNEL_LISTEN", "127.0.0.1:0");
    } else {
        command
            .env("TUNNEL_SERVER", "ws://127.0.0.1:1/connect")
            .env("TUNNEL_NAME", "web");
    }
    command
}

#[test]
fn an_option_that_is_wrong_in_any_source_is_named_and_nothing_starts() {
    let folder = tempfile::tempdir().unwrap();
    for subcommand in ["server", "agent"] {
        for (option, is_switch) in options(subcommand) {
            if matches!(option.as_str(), "help" | "version") {
                continue;
            }
            let variable = format!("TUNNEL_{}", option.to_uppercase().replace('-', "_"));
            let named = |said: &str, what: &str| {
                let names = [&option, &variable, &option.replace('-', " "), WRONG];
                assert!(
                    names.iter().any(|name| said.contains(*name)),
                    "{what} is not named: {said}"
                );
            };
            let file = folder.path().join("tunnel.toml");
            for value in ["", WRONG] {
                // The first agent is invited, and every path can be that of a folder.
                if matches!(
                    (option.as_str(), value),
                    ("print-join", "") | ("state-dir", WRONG)
                ) {
                    continue;
                }
                let what = format!("{subcommand} --{option}={value:?}");
                let flag = format!("--{option}={value}");
                named(&refuses(base(subcommand).arg(&flag), &what), &what);

                let what = format!("{subcommand} {variable}={value:?}");
                let mut with = base(subcommand);
                named(&refuses(with.env(&variable, value), &what), &what);

                if matches!(option.as_str(), "config" | "log-format") {
                    continue;
                }
                let what = format!("{subcommand} {option} = {value:?} in the file");
                let mut with = base(subcommand);
                with.env_remove(&variable).arg("--config").arg(&file);
                let list = format!("[{subcommand}]\n{option} = [{value:?}]\n");
                let single = format!("[{subcommand}]\n{option} = {value:?}\n");
                for text in [list, single] {
                    std::fs::write(&file, text).unwrap();
                    named(&refuses(&mut with, &what), &what);
                }
            }
            if !is_switch {
                let what = format!("{subcommand} --{option} without a value");
                let flag = format!("--{option}");
                named(&refuses(base(subcommand).arg(&flag), &what), &what);
            }
        }
    }
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tunnel.toml");
    std::fs::write(
        &file,
        "[agent]\nlinks = 70\nserver = [\"ws://127.0.0.1:1/connect\"]\n",
    )
    .unwrap();
    let with = |configure: fn(&mut Command)| {
        let mut command = command(&["agent", "--name", "web", "--config"]);
        command.arg(&file);
        configure(&mut command);
        refuses(&mut command, "too many links")
    };
    assert!(with(|_| {}).contains("--links 70"));
    let said = with(|command| {
        command.env("TUNNEL_LINKS", "80");
    });
    assert!(said.contains("--links 80"), "{said}");
    let said = with(|command| {
        command.env("TUNNEL_LINKS", "80").args(["--links", "90"]);
    });
    assert!(said.contains("--links 90"), "{said}");
}

#[test]
fn a_configuration_is_checked_without_starting_anything() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tunnel.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        command(&["check"]).arg(&file).output().unwrap()
    };
    let good = check(
        "[server]\nlisten = \"127.0.0.1:1\"\n[agent]\nserver = [\"ws://127.0.0.1:1/connect\"]\nname = \"web\"\nallow = [\"127.0.0.1:*\"]\n",
    );
    let said = String::from_utf8(good.stdout).unwrap();
    assert!(
        good.status.success() && said.contains("listens on 127.0.0.1:1"),
        "{said}"
    );
    for (text, word) in [
        ("", "neither"),
        ("[server]\nlisen = \"a\"\n", "\"listen\""),
        ("[server]\ntoken-file = \"nowhere\"\n", "nowhere"),
        ("[server.agents.home]\n", "lets nobody in"),
        (
            "[server.agents.home]\ntokens = [\"hunter2\"]\n",
            "digest of a token",
        ),
    ] {
        let output = check(text);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains(word),
            "{text}: {said}"
        );
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn a_token_is_made_once_and_only_its_digest_is_told_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let digest = || {
        let output = command(&["token", "--file"]).arg(&file).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let first = digest();
    let secret = std::fs::read_to_string(&file).unwrap();
    assert!(first.starts_with("digest sha256:") && !first.contains(secret.trim()));
    assert_eq!(digest(), first);
}
