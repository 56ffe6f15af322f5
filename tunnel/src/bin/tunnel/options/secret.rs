//! Secrets come from files or from the environment. The command line never has any, since every
//! user of the machine can read it.

use std::path::Path;

use anyhow::Context as _;
use tunnel::io::token::{Token, TokenError};
use tunnel::login::Users;

/// Reads a secret from the file that `option` names, or else from the environment. An error names
/// both.
pub(super) fn read(
    file: Option<&Path>,
    option: &'static str,
    variable: &'static str,
) -> Result<Token, TokenError> {
    match file {
        Some(path) => Token::from_file(path),
        None => match std::env::var(variable) {
            Ok(secret) => Token::new(&secret, variable),
            Err(std::env::VarError::NotPresent) => Err(TokenError::Missing { option, variable }),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(TokenError::NotVisible(variable.to_owned()))
            }
        },
    }
}

/// Reads the user whose `USER:PASSWORD` a file has.
pub(super) fn user(file: &Path) -> anyhow::Result<Users> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    Users::of_pair(&text).with_context(|| format!("the credentials in {name} are wrong"))
}
