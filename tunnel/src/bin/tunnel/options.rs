//! What can be set, from three sources: the configuration file, the environment, the command line.
//! The later wins.
//!
//! Every option has one name: `--some-thing` on the command line is `TUNNEL_SOME_THING` in the
//! environment and `some-thing` in the table of its command in the file. The field that declares it
//! decides everything else about it: its type how its value is written, its first word whether a
//! change takes effect while the program runs (`live`) or with its next start (`fixed`).

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};

mod agent;
mod common;
mod secret;
mod server;
mod state;
mod value;

pub(crate) use agent::{AgentOptions, AgentPlan};
pub(crate) use common::CommonOptions;
pub(crate) use server::{
    GrantOptions, JoinPlan, ServerOptions, ServerPlan, TlsSource, UserOptions,
};
use value::Value;

/// The options in one table of the file. Each may be set in every source, or not at all.
pub(crate) trait Options: Default {
    /// Returns the names of all options.
    fn names() -> Vec<String>;

    /// Reads the value of the option `name` from the file, if there is such an option.
    fn read<'de, M: MapAccess<'de>>(&mut self, name: &str, file: &mut M) -> Result<bool, M::Error>;

    /// Returns these options, and those of `below` where these say nothing.
    fn over(self, below: Self) -> Self;

    /// Makes the paths, which are relative to the folder of the file, independent of where the
    /// program is started.
    fn rebase(&mut self, folder: &Path);

    /// Returns the files whose change takes effect while the program runs.
    fn live_files(&self) -> Vec<PathBuf>;

    /// Returns the names of the options that differ from `before` and take effect with the next
    /// start only.
    fn fixed_differences(&self, before: &Self) -> Vec<String>;
}

/// Defines the options in one table of the file, with those of another struct among them.
macro_rules! options {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[$of_field:meta])* $when:ident $field:ident: $type:ty, )*
            $( ..$rest:ident: $of_rest:ty )?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        $vis struct $name {
            $( $(#[$of_field])* pub(crate) $field: Option<$type>, )*
            $( #[command(flatten)] pub(crate) $rest: $of_rest, )?
        }

        impl $crate::options::Options for $name {
            fn names() -> Vec<String> {
                let names = [$( stringify!($field).replace('_', "-") ),*];
                let rest: [Vec<String>; _] = [$( <$of_rest>::names() )?];
                names.into_iter().chain(rest.into_iter().flatten()).collect()
            }

            fn read<'de, M: serde::de::MapAccess<'de>>(
                &mut self,
                name: &str,
                file: &mut M,
            ) -> Result<bool, M::Error> {
                $( if name == stringify!($field).replace('_', "-") {
                    self.$field = Some(file.next_value_seed($crate::options::Seed::new())?);
                    return Ok(true);
                } )*
                $( if self.$rest.read(name, file)? {
                    return Ok(true);
                } )?
                Ok(false)
            }

            fn over(self, below: Self) -> Self {
                Self {
                    $( $field: self.$field.or(below.$field), )*
                    $( $rest: self.$rest.over(below.$rest), )?
                }
            }

            fn rebase(&mut self, folder: &std::path::Path) {
                use $crate::options::value::Value as _;
                $( if let Some(path) = self.$field.as_mut().and_then(|value| value.path_mut()) {
                    *path = folder.join(&path);
                } )*
                $( self.$rest.rebase(folder); )?
            }

            fn live_files(&self) -> Vec<std::path::PathBuf> {
                use $crate::options::value::Value as _;
                let files = [$(
                    $crate::options::is_live!($when)
                        .then(|| self.$field.clone()?.path_mut().cloned())
                        .flatten()
                ),*];
                let rest: [Vec<std::path::PathBuf>; _] = [$( self.$rest.live_files() )?];
                files.into_iter().flatten().chain(rest.into_iter().flatten()).collect()
            }

            fn fixed_differences(&self, before: &Self) -> Vec<String> {
                let mut names = Vec::new();
                $( if !$crate::options::is_live!($when) && self.$field != before.$field {
                    names.push(stringify!($field).replace('_', "-"));
                } )*
                $( names.extend(self.$rest.fixed_differences(&before.$rest)); )?
                names
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map($crate::options::Table::new())
            }
        }
    };
}
use options;

macro_rules! is_live {
    (live) => {
        true
    };
    (fixed) => {
        false
    };
}
use is_live;

/// Reads one table of the file.
struct Table<T>(PhantomData<T>);

impl<T> Table<T> {
    const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<'de, T: Options> Visitor<'de> for Table<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut file: M) -> Result<T, M::Error> {
        let mut options = T::default();
        while let Some(name) = file.next_key::<String>()? {
            if !options.read(&name, &mut file)? {
                return Err(de::Error::custom(format_args!("there is no {name:?}")));
            }
        }
        Ok(options)
    }
}

/// Reads the value of one option from the file.
struct Seed<T>(PhantomData<T>);

impl<T> Seed<T> {
    const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<'de, T: Value> DeserializeSeed<'de> for Seed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        T::read(deserializer)
    }
}

/// Warns of the options that were changed and take effect with the next start only.
pub(crate) fn warn_of_fixed<T: Options>(new: &T, before: &T) {
    let changed = new.fixed_differences(before);
    if !changed.is_empty() {
        tracing::warn!(
            options = changed.join(", "),
            "these take effect with the next start only"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ServerOptions {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn paths_are_relative_to_the_folder_of_the_file() {
        let mut options = read("token-file = 'token'\nstate-dir = '/state'\ndrain = '1s'");
        options.rebase(Path::new("/etc/tunnel"));
        assert_eq!(options.token_file, Some("/etc/tunnel/token".into()));
        assert_eq!(options.state_dir, Some("/state".into()));
    }

    #[test]
    fn the_upper_source_wins_option_by_option() {
        let options = read("drain = '1s'\nmax-flows = 1");
        let options = options.over(read(
            "drain = '2s'\nidle = '3s'\nmax-flows = 2\nlinger = '4s'",
        ));
        let whole = read("drain = '1s'\nidle = '3s'\nmax-flows = 1\nlinger = '4s'");
        assert_eq!(options, whole);
    }

    #[test]
    fn what_takes_effect_at_once_is_no_difference() {
        let before = read("token-file = 'a'\npeer-token-file = 'b'\nidle = '1s'");
        let after = read("token-file = 'c'\npeer-token-file = 'd'\nidle = '2s'\nforward = []");
        assert_eq!(after.fixed_differences(&before), ["idle"]);
        assert_eq!(after.live_files(), [Path::new("c"), Path::new("d")]);
    }

    #[test]
    fn every_option_is_named_once() {
        let mut names = ServerOptions::names();
        assert!(names.contains(&"peer-tls-cert".to_owned()));
        assert!(names.contains(&"tcp-user-timeout".to_owned()));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
