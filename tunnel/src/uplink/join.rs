//! The one line by which an agent joins: `URL#token=TOKEN[&pin=PIN][&name=NAME]`.
//!
//! What stands behind the `#` of a URL is never sent, so a line that ends up in a browser or a proxy by mistake tells nothing.

use std::fmt;
use std::str::FromStr;

use tunnel_proto::wire::handshake;

use crate::io::token::Token;
use crate::uplink::url::{ServerUrl, ServerUrlError};

/// An invitation: where the server is, how it proves that it is the one, and a token that is good once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// The server.
    pub server: ServerUrl,
    /// The one-time token.
    pub token: Token,
    /// The pin of the server's certificate or its authority, if the server has one that no other authority vouches for.
    pub pin: Option<String>,
    /// The name that the invitation is for, if it is for one.
    pub name: Option<String>,
}

/// Why a text is not a join line. No error repeats it: it holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It has no `#token=`.
    #[error(
        "this is not a join line: it is URL#token=TOKEN with more, as `tunnel server --print-join` prints it; put it in quotes"
    )]
    Malformed,
    /// The URL is wrong.
    #[error("the join line's URL is wrong: {0}")]
    Server(#[from] ServerUrlError),
    /// A part after the `#` is not one that is known.
    #[error(
        "the join line has a part {0:?} that is not known: is it cut off, or made by a newer version?"
    )]
    Unknown(String),
    /// A part stands there twice.
    #[error("the join line says {0} twice")]
    Twice(&'static str),
    /// The name is none.
    #[error("the name in the join line is not an agent's name")]
    Name,
    /// The token is none.
    #[error("the token in the join line is empty or damaged")]
    Token,
}

impl Join {
    /// Returns the line, secret and all.
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

/// Says where it leads and not the secret.
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
