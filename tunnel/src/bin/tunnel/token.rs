//! `tunnel token`: a token for an agent, and what the server keeps of it.

use std::path::Path;

use anyhow::Context as _;
use tunnel::io::files;
use tunnel::io::token::Token;

use crate::stdout::say;

pub(crate) fn token(file: Option<&Path>) -> anyhow::Result<()> {
    let token = match file {
        Some(file) if file.exists() => Token::from_file(file)?,
        Some(file) => {
            let token = make()?;
            files::replace(file, format!("{}\n", token.expose()).as_bytes(), 0o600)
                .with_context(|| format!("cannot write {}", file.display()))?;
            token
        }
        None => {
            let token = make()?;
            say(format_args!("token  {}", token.expose()))?;
            token
        }
    };
    say(format_args!("digest {}", token.digest()))
}

fn make() -> anyhow::Result<Token> {
    Token::random().context("the system has no random numbers")
}
