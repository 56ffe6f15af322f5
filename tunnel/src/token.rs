//! The secret that a server and its agents share.

use std::fmt;
use std::path::Path;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A shared secret. It is never printed, and compared in a time that does not depend on where two differ.
#[derive(Clone)]
pub struct Token {
    secret: String,
    digest: [u8; 32],
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nobody gave one.
    #[error(
        "no token: write one to a file and pass {option} FILE, or set {variable}; both ends need the same one"
    )]
    Missing {
        /// The option that names a file.
        option: &'static str,
        /// The environment variable that is read without it.
        variable: &'static str,
    },
    /// It has no characters besides white space.
    #[error(
        "the token in {0} is empty: write a long random text there, as `openssl rand -hex 32` prints it"
    )]
    Empty(String),
    /// It has characters that a header cannot carry.
    #[error(
        "the token in {0} has characters other than visible ASCII: an HTTP header cannot carry it"
    )]
    NotVisible(String),
    /// The file cannot be read.
    #[error("cannot read the token file {path}: {error}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
}

impl Token {
    /// Takes a secret; `origin` names the place it came from in errors. White space around it is dropped.
    ///
    /// # Errors
    ///
    /// [`TokenError::Empty`] or [`TokenError::NotVisible`].
    pub fn new(secret: &str, origin: &str) -> Result<Self, TokenError> {
        let secret = secret.trim();
        if secret.is_empty() {
            return Err(TokenError::Empty(origin.to_owned()));
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::NotVisible(origin.to_owned()));
        }
        Ok(Self {
            secret: secret.to_owned(),
            digest: Sha256::digest(secret).into(),
        })
    }

    /// Reads a secret from a file.
    ///
    /// # Errors
    ///
    /// [`TokenError::File`], or as [`Self::new`].
    pub fn from_file(path: &Path) -> Result<Self, TokenError> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(secret) => Self::new(&secret, &name),
            Err(error) => Err(TokenError::File { path: name, error }),
        }
    }

    /// Whether `candidate` is this secret.
    #[must_use]
    pub fn accepts(&self, candidate: &[u8]) -> bool {
        let candidate: [u8; 32] = Sha256::digest(candidate).into();
        self.digest.ct_eq(&candidate).into()
    }

    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.secret)
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.digest.ct_eq(&other.digest).into()
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_is_accepted() {
        let token = Token::new(" secret\n", "test").unwrap();
        assert!(token.accepts(b"secret"));
        for wrong in ["", "secre", "secret ", "Secret"] {
            assert!(!token.accepts(wrong.as_bytes()));
        }
        assert!(!format!("{token:?}").contains("secret"));
    }

    #[test]
    fn no_secret_is_refused() {
        assert!(matches!(
            Token::new(" \n", "test"),
            Err(TokenError::Empty(_))
        ));
        assert!(matches!(
            Token::new("a b", "test"),
            Err(TokenError::NotVisible(_))
        ));
    }
}
