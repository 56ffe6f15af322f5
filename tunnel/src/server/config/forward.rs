//! Static forwards, as they are configured.

use std::fmt;
use std::str::FromStr;

use tunnel_proto::listen::{self, Listen, ListenError, PortRange};
use tunnel_proto::target::{Target, TargetError};
use tunnel_proto::wire::handshake;

/// `LISTEN=AGENT/TARGET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where it listens. A UDP target needs an IP address and port.
    pub listen: Listen,
    /// The agent's name.
    pub agent: String,
    /// What the agent dials.
    pub target: Target,
}

impl Forward {
    /// Returns `AGENT/TARGET`.
    #[must_use]
    pub fn destination(&self) -> String {
        format!("{}/{}", self.agent, self.target)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.listen, self.destination())
    }
}

/// Why a text is not a forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// It does not have the three parts.
    #[error(
        "{0:?} is not a forward: write LISTEN=AGENT/tcp/HOST:PORT, as \
         127.0.0.1:8080=web/tcp/127.0.0.1:9000, LISTEN=AGENT/udp/HOST:PORT or \
         LISTEN=AGENT/unix//PATH"
    )]
    Malformed(String),
    /// The target does not have a port for each port of the range.
    #[error("{0:?} needs as many ports of the target as it listens on, or one for all")]
    Range(String),
    /// Nothing can listen there.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The target is wrong.
    #[error(transparent)]
    Target(#[from] TargetError),
}

impl Forward {
    /// Reads one forward, or one for each port of a range: `127.0.0.1:8000-8003=AGENT/TARGET`. The
    /// target has one port for all of them, or a range of as many ports.
    ///
    /// # Errors
    ///
    /// [`ForwardError`].
    pub fn parse_all(text: &str) -> Result<Vec<Self>, ForwardError> {
        let (listen, agent, target) = split(text)?;
        let places = listen::places(listen)?;
        let range = match target.starts_with("unix/") {
            true => None,
            false => PortRange::split(target)?,
        };
        let targets: Vec<Target> = match range {
            None => vec![target.parse()?; places.len()],
            Some((host, range)) if usize::from(range.count()) == places.len() => {
                let targets = range.ports().map(|port| format!("{host}:{port}").parse());
                targets.collect::<Result<_, _>>()?
            }
            Some(_) => return Err(ForwardError::Range(text.to_owned())),
        };
        let forwards = places.into_iter().zip(targets);
        Ok(forwards
            .map(|(listen, target)| Self {
                listen,
                agent: agent.to_owned(),
                target,
            })
            .collect())
    }
}

/// Returns where a forward listens, its agent and its target.
fn split(text: &str) -> Result<(&str, &str, &str), ForwardError> {
    let parts = || {
        let (listen, destination) = text.split_once('=')?;
        let (agent, target) = destination.split_once('/')?;
        handshake::is_name(agent).then_some((listen, agent, target))
    };
    parts().ok_or_else(|| ForwardError::Malformed(text.to_owned()))
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (listen, agent, target) = split(text)?;
        Ok(Self {
            listen: listen.parse()?,
            agent: agent.to_owned(),
            target: target.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_forward_for_each_port() {
        let read = |text: &str| {
            let forwards = Forward::parse_all(text)?;
            Ok::<_, ForwardError>(forwards.iter().map(Forward::to_string).collect::<Vec<_>>())
        };
        for (text, expected) in [
            (
                "127.0.0.1:1=home/tcp/a-1-2:5",
                &["127.0.0.1:1=home/tcp/a-1-2:5"][..],
            ),
            (
                "127.0.0.1:1-2=home/tcp/a:5-6",
                &["127.0.0.1:1=home/tcp/a:5", "127.0.0.1:2=home/tcp/a:6"],
            ),
            (
                "localhost:1-2=home/udp/[::1]:5",
                &[
                    "127.0.0.1:1=home/udp/[::1]:5",
                    "127.0.0.1:2=home/udp/[::1]:5",
                ],
            ),
            (
                "127.0.0.1:1=home/unix//run/a:1-2",
                &["127.0.0.1:1=home/unix//run/a:1-2"],
            ),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        for text in [
            "127.0.0.1:1=home/tcp/a:5-6",
            "127.0.0.1:1-3=home/tcp/a:5-6",
            "unix:/a=home/tcp/a:5-6",
            "127.0.0.1:1-2=home/tcp/a:6-5",
            "127.0.0.1:1-2",
            "127.0.0.1:1-2=home",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
