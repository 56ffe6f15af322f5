//! The configuration file: one TOML file with a table for each command. A key that is not known is
//! an error.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};
use tunnel::io::token::DigestError;

use crate::nearest::nearest;
use crate::options::{AgentOptions, GrantOptions, Options as _, ServerOptions, UserOptions};

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Settings {
    /// Options of `tunnel server`.
    pub(crate) server: Option<ServerOptions>,
    /// Options of `tunnel agent`.
    pub(crate) agent: Option<AgentOptions>,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read the configuration {}: {error}", file.display())]
    Read {
        file: PathBuf,
        error: std::io::Error,
    },
    #[error("{}: TOML error at {place}: {why}", file.display())]
    Wrong {
        file: PathBuf,
        place: String,
        why: String,
    },
    #[error("{}: there is no {key:?} in {place}{hint}", file.display())]
    Unknown {
        file: PathBuf,
        key: String,
        place: String,
        hint: String,
    },
}

impl Settings {
    /// Reads a file.
    pub(crate) fn read(file: &Path) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(file).map_err(|error| FileError::Read {
            file: file.to_owned(),
            error,
        })?;
        let mut settings = Self::parse(&text, file)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        if let Some(server) = &mut settings.server {
            server.rebase(folder);
        }
        if let Some(agent) = &mut settings.agent {
            agent.rebase(folder);
        }
        Ok(settings)
    }

    fn parse(text: &str, file: &Path) -> Result<Self, FileError> {
        let wrong = |error| {
            let (place, why) = explain(text, &error);
            FileError::Wrong {
                file: file.to_owned(),
                place,
                why,
            }
        };
        // Before the values, so that a key that is misspelt is named before what follows from it.
        let table: Table = toml::from_str(text).map_err(wrong)?;
        if let Some((key, place, hint)) = unknown(&table) {
            return Err(FileError::Unknown {
                file: file.to_owned(),
                key,
                place,
                hint,
            });
        }
        toml::from_str(text).map_err(wrong)
    }
}

/// Returns where in the file the error is and what is wrong. The parser's message quotes the line,
/// and where digests of tokens belong the line may hold a token.
fn explain(text: &str, error: &toml::de::Error) -> (String, String) {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or(text);
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let place = match line.split_once('=') {
        Some((key, _)) => format!("line {number}, {}", key.trim()),
        None => format!("line {number}"),
    };
    let why = if line.contains("tokens") {
        DigestError.to_string()
    } else {
        error.message().to_owned()
    };
    (place, why)
}

/// The tables of a file.
const TABLES: [&str; 2] = ["server", "agent"];

/// Returns the first key that is not known, where it stands, and what may be meant.
fn unknown(table: &Table) -> Option<(String, String, String)> {
    let in_table = |name: &str| table.get(name).and_then(Value::as_table);
    unknown_in(table, &TABLES.map(str::to_owned), "the file")
        .or_else(|| unknown_in(in_table("server")?, &ServerOptions::names(), "[server]"))
        .or_else(|| unknown_in(in_table("agent")?, &AgentOptions::names(), "[agent]"))
        .or_else(|| unknown_below(in_table("server")?, "agents", &GrantOptions::names()))
        .or_else(|| unknown_below(in_table("server")?, "users", &UserOptions::names()))
}

/// As [`unknown_in`], in the tables of one of the server's tables.
fn unknown_below(
    server: &Table,
    table: &str,
    known: &[String],
) -> Option<(String, String, String)> {
    let below = server.get(table)?.as_table()?;
    below.iter().find_map(|(name, entry)| {
        let place = format!("[server.{table}.{name}]");
        unknown_in(entry.as_table()?, known, &place)
    })
}

fn unknown_in(table: &Table, known: &[String], place: &str) -> Option<(String, String, String)> {
    let key = table.keys().find(|key| !known.contains(key))?;
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let hint = match nearest(key, &known) {
        Some(near) => format!("; is {near:?} meant?"),
        None => format!("; it has {}", known.join(", ")),
    };
    Some((key.clone(), place.to_owned(), hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(text, Path::new("t.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_is_read() {
        let text = r#"
            [server]
            listen = "127.0.0.1:0"
            forward = ["127.0.0.1:0=home/tcp/127.0.0.1:9000"]
            drain = "3s"
            max-streams = 7
            accept-remotedialer = true

            [server.agents.home]
            tokens = ["sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]
            targets = ["127.0.0.1:9000"]
            ports = ["127.0.0.1:0"]

            [agent]
            server = ["ws://127.0.0.1:1/connect"]
            allow = ["127.0.0.1:9000"]
        "#;
        let settings = parse(text).unwrap();
        let server = settings.server.unwrap();
        assert_eq!(server.forward.unwrap().len(), 1);
        assert_eq!(server.max_streams, Some(7));
        assert!(server.agents.unwrap().contains_key("home"));
        assert_eq!(settings.agent.unwrap().allow.unwrap().len(), 1);
    }

    #[test]
    fn what_nobody_knows_is_an_error_with_the_nearest_name() {
        for (text, words) in [
            ("[sever]", ["\"sever\"", "\"server\""]),
            ("[server]\nlisten_on = 1", ["\"listen_on\"", "\"listen\""]),
            ("[server]\nmax_streams = 1", ["[server]", "\"max-streams\""]),
            ("[agent]\nalow = []", ["\"alow\"", "\"allow\""]),
            (
                "[server.agents.home]\ntoken = []",
                ["[server.agents.home]", "\"tokens\""],
            ),
            (
                "[server.users.anna]\nagent = []",
                ["[server.users.anna]", "\"agents\""],
            ),
            (
                "[server.agents.home]\nzzzzzzzz = []",
                ["zzzzzzzz", "it has tokens"],
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn a_token_in_the_place_of_its_digest_is_not_repeated() {
        for value in [
            "\"hunter2\"",
            "[\"hunter2\"]",
            "[\n\"hunter2\"\n]",
            "[[\"hunter2\"]]",
        ] {
            let error = parse(&format!("[server.agents.home]\ntokens = {value}\n")).unwrap_err();
            assert!(
                error.contains("line ") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, words) in [
            ("[server]\nlisten = \"here\"", ["line 2", "listen"]),
            ("[server]\ndrain = \"soon\"", ["line 2", "soon"]),
            ("[server]\nforward = [\"a\"]", ["line 2", "LISTEN=AGENT"]),
            ("[agent]\nlinks = -1", ["line 2", "links"]),
            ("[server", ["line 1", "TOML"]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
