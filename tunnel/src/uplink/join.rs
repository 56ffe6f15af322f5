//! The join line of an invitation: `URL#token=TOKEN[&pin=PIN][&name=NAME]`.
//!
//! The part of a URL after `#` is never sent. So a line that is pasted into a browser by mistake
//! does not leak its token.

use std::fmt;
use std::str::FromStr;

use tunnel_proto::wire::handshake;

use crate::io::token::Token;
use crate::uplink::url::{ServerUrl, ServerUrlError};

/// An invitation: the URL of the server, the pin of its certificate and a one-time token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// The server.
    pub server: ServerUrl,
    /// The one-time token.
    pub token: Token,
    /// The pin of the server's certificate or its authority, if no public authority signed it.
    pub pin: Option<String>,
    /// The agent name that the invitation is for, if it is for one.
    pub name: Option<String>,
}

/// Why a text is not a join line. No error repeats the text, because it holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It has no `#token=`.
    #[error(
        "this is not a join line: write URL#token=TOKEN in quotes, as `tunnel server --print-join` \
         prints it"
    )]
    Malformed,
    /// The URL is wrong.
    #[error("the join line's URL is wrong: {0}")]
    Server(#[from] ServerUrlError),
    /// A part after the `#` is unknown.
    #[error(
        "the join line has an unknown part {0:?}: is it cut off, or was it made by a newer version?"
    )]
    Unknown(String),
    /// A part is repeated.
    #[error("the join line repeats {0}")]
    Twice(&'static str),
    /// The name is not valid.
    #[error("the name in the join line is not an agent's name")]
    Name,
    /// The token is not valid.
    #[error("the token in the join line is empty or damaged")]
    Token,
}

impl Join {
    /// Returns the line, token included.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("{}#token={}", self.server, self.token.expose());
        for (key, value) in [("pin", &self.pin), ("name", &self.name)] {
            if let Some(value) = value {
                line.push_str(&format!("&{key}={value}"));
            }
        }
        line
    }
}

impl FromStr for Join {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (url, parts) = text.trim().split_once('#').ok_or(JoinError::Malformed)?;
        let (mut token, mut pin, mut name) = (None, None, None);
        for part in parts.split('&') {
            let (key, value) = part.split_once('=').ok_or(JoinError::Malformed)?;
            let (slot, key) = match key {
                "token" => (&mut token, "token"),
                "pin" => (&mut pin, "pin"),
                "name" => (&mut name, "name"),
                other => {
                    return Err(JoinError::Unknown(other.chars().take(16).collect()));
                }
            };
            if slot.replace(value).is_some() {
                return Err(JoinError::Twice(key));
            }
        }
        let token = token.ok_or(JoinError::Malformed)?;
        if name.is_some_and(|name| !handshake::is_name(name)) {
            return Err(JoinError::Name);
        }
        Ok(Self {
            server: url.parse()?,
            token: Token::new(token, "the join line").map_err(|_| JoinError::Token)?,
            pin: pin.map(str::to_owned),
            name: name.map(str::to_owned),
        })
    }
}

/// Shows the server and not the token.
impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invitation of {}", self.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back_as_written() {
        for line in [
            "ws://127.0.0.1:8123/connect#token=abc",
            "ws://tunnel.example:8123/connect#token=abc&pin=sha256:00ff&name=home",
        ] {
            let join: Join = line.parse().unwrap();
            assert_eq!(join.line(), line);
            assert!(!format!("{join} {join:?}").contains("abc"));
        }
    }

    #[test]
    fn what_is_no_line_is_refused_without_its_secret() {
        for line in [
            "",
            "ws://a/connect",
            "ws://a/connect#",
            "ws://a/connect#secret",
            "ws://a/connect#pin=secret",
            "ws://a/connect#token=",
            "ws://a/connect#token=secret&token=other",
            "ws://a/connect#token=secret&more=1",
            "ws://a/connect#token=secret&name=a b",
            "http://a/connect#token=secret",
        ] {
            let error = line.parse::<Join>().unwrap_err();
            assert!(!error.to_string().contains("secret"), "{line}: {error}");
        }
    }
}
