//! The tokens that authenticate agents and peers.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

/// A shared secret. It is never printed. It is compared in constant time.
#[derive(Clone)]
pub struct Token {
    secret: String,
    digest: Digest,
}

/// The SHA-256 of a token; as text, `sha256:` and 64 hexadecimal digits. The token cannot be
/// derived from it if the token is long and random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// A text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not the digest of a token: write sha256: and 64 hexadecimal digits, as `tunnel token` \
     prints it"
)]
pub struct DigestError;

impl Digest {
    /// Returns the digest of a secret.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Whether both are equal, in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", HEXLOWER.encode(&self.0))
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    /// The error does not repeat the text, because it may be the token itself, put in the wrong
    /// place.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("sha256:").ok_or(DigestError)?;
        let bytes = HEXLOWER.decode(digits.to_ascii_lowercase().as_bytes());
        let bytes = bytes.map_err(|_| DigestError)?;
        bytes.try_into().map(Self).map_err(|_| DigestError)
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// None was given.
    #[error(
        "no token: write one to a file and pass {option} FILE, or set {variable}; both ends need \
         the same one"
    )]
    Missing {
        /// The option that names a file.
        option: &'static str,
        /// The environment variable that is read without it.
        variable: &'static str,
    },
    /// It is empty or only white space.
    #[error(
        "the token in {0} is empty: write a long random text there, as `openssl rand -hex 32` \
         prints it"
    )]
    Empty(String),
    /// It has characters that are not allowed in a header.
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
    /// Creates a token. `origin` says in errors where it came from. White space around it is
    /// removed.
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
            digest: Digest::of(secret.as_bytes()),
        })
    }

    /// Reads a token from a file.
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

    /// Whether `candidate` is this token.
    #[must_use]
    pub fn accepts(&self, candidate: &[u8]) -> bool {
        self.digest.matches(&Digest::of(candidate))
    }

    /// Makes a new token of 256 random bits.
    ///
    /// # Errors
    ///
    /// What the system's source of random numbers says.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        let secret = BASE64URL_NOPAD.encode(&bytes);
        let digest = Digest::of(secret.as_bytes());
        Ok(Self { secret, digest })
    }

    /// Returns the digest, which is all that a server stores.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns the token itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.secret
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.secret)
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.digest.matches(&other.digest)
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
    fn digests_read_back_as_written_and_errors_repeat_no_secret() {
        // FIPS 180-2, appendix B.1.
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), text);
        assert_eq!(text.parse(), Ok(Digest::of(b"abc")));
        assert_eq!(
            text.to_uppercase().replace("SHA", "sha").parse(),
            Ok(Digest::of(b"abc"))
        );
        for wrong in [
            "",
            "abc",
            "sha256:",
            "sha256:ba78",
            &text[7..],
            &format!("{text}00"),
        ] {
            let error = wrong.parse::<Digest>().unwrap_err().to_string();
            assert!(wrong.is_empty() || !error.contains(&format!("{wrong:?}")));
        }
        let (one, other) = (Token::random().unwrap(), Token::random().unwrap());
        assert!(one != other && one.expose().len() == 43);
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
