//! What can be set, from three sources: the configuration file, the environment, the command line. The later wins.
//!
//! Every option has one name: `--some-thing` on the command line is `TUNNEL_SOME_THING` in the environment and `some-thing` in the table
//! of its command in the file.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};
use tunnel::target::Endpoint;

use crate::file::nearest;

mod agent;
mod common;
mod secret;
mod server;
mod state;

pub(crate) use agent::{AgentOptions, AgentPlan, LIVE as AGENT_LIVE};
pub(crate) use server::{GrantOptions, LIVE as SERVER_LIVE, ServerOptions, ServerPlan};

/// Defines the options of one command: every field may be set in each source or not at all.
macro_rules! options {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident { $( $(#[$of_field:meta])* $field:ident: $type:ty, )* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, clap::Args, serde::Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        $vis struct $name {
            $( $(#[$of_field])* pub(crate) $field: Option<$type>, )*
        }

        impl $name {
            /// Returns these options, and those of `below` where these say nothing.
            pub(crate) fn over(self, below: Self) -> Self {
                Self { $( $field: self.$field.or(below.$field), )* }
            }

            /// Returns the names of the options in which two differ.
            pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
                let mut names = Vec::new();
                $( if self.$field != other.$field {
                    names.push(stringify!($field).replace('_', "-"));
                } )*
                names
            }
        }
    };
}
pub(crate) use options;

/// Reads an option that is a text in the file.
pub(crate) fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

/// Reads an option that is a list of texts in the file.
pub(crate) fn texts<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    let values = texts.iter().map(|text| text.parse());
    values
        .collect::<Result<_, _>>()
        .map(Some)
        .map_err(de::Error::custom)
}

/// A length of time, as `10s` or `1m 30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) std::time::Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let span = humantime::parse_duration(text);
        span.map(Self).map_err(|error| {
            format!("{text:?} is not a length of time such as 10s or 1m 30s: {error}")
        })
    }
}

/// Reads a name.
pub(crate) fn named<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    name(&text).map(Some).map_err(de::Error::custom)
}

/// Reads a path. An empty one is a mistake, as it is on the command line.
pub(crate) fn path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.as_os_str().is_empty() {
        return Err(de::Error::custom("the path is empty"));
    }
    Ok(Some(path))
}

/// Says which options were changed that take effect with the next start only.
pub(crate) fn warn_of_the_rest(mut changed: Vec<String>, live: &[&str]) {
    changed.retain(|option| !live.contains(&option.as_str()));
    if !changed.is_empty() {
        tracing::warn!(
            options = changed.join(", "),
            "these take effect with the next start only"
        );
    }
}

/// Warns of variables that look like options and are none: a setting that is misspelt must not be thought to be in force.
pub(crate) fn warn_of_strange_variables(known: &[String]) {
    for (variable, _) in std::env::vars_os() {
        let variable = variable.to_string_lossy();
        if variable.starts_with("TUNNEL_") && !known.iter().any(|known| *known == *variable) {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let meant = nearest(&variable, &known).unwrap_or("none that is known");
            tracing::warn!(%variable, meant, "this variable sets nothing");
        }
    }
}

/// A host's name or address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostName(pub(crate) String);

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.parse::<IpAddr>().is_ok() {
            return Ok(Self(text.to_owned()));
        }
        match Endpoint::parse(text, Some(1)) {
            Ok(endpoint) if !text.contains(':') => Ok(Self(endpoint.host().to_owned())),
            Ok(_) | Err(_) => Err(format!("{text:?} is neither a host's name nor an address")),
        }
    }
}

/// Whom an invitation is for: the agent of this name, or the first that comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invitee(pub(crate) Option<String>);

impl FromStr for Invitee {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Ok(Self(None)),
            named => name(named).map(Some).map(Self),
        }
    }
}

/// A path that the file names is looked for from the file's own folder.
pub(crate) fn rebase(path: &mut Option<PathBuf>, folder: &Path) {
    if let Some(path) = path {
        *path = folder.join(&path);
    }
}

/// Reads an agent's or a peer's name.
pub(crate) fn name(text: &str) -> Result<String, &'static str> {
    if tunnel::wire::handshake::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 64 letters, digits, '-', '_' or '.'")
    }
}
