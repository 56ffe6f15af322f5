//! A user's name and password.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// A user's name and password. The password is never printed, and compared in a time that does not
/// depend on where two differ.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    digest: [u8; 32],
}

/// Why a name and a password are not credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The name does not fit.
    #[error("a user's name has 1 to 255 bytes and no ':', since HTTP ends it there")]
    User,
    /// The password does not fit.
    #[error("a password has 1 to 255 bytes")]
    Password,
    /// There is no `:`.
    #[error("write USER:PASSWORD")]
    Malformed,
}

impl Credentials {
    /// Takes a user's name and password, 1 to 255 bytes each (RFC 1929).
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] names the part that does not fit.
    pub fn new(user: &str, password: &str) -> Result<Self, CredentialsError> {
        let fits = |text: &str| (1..=255).contains(&text.len());
        if !fits(user) || user.contains(':') {
            return Err(CredentialsError::User);
        }
        if !fits(password) {
            return Err(CredentialsError::Password);
        }
        Ok(Self {
            user: user.to_owned(),
            digest: digest(user.as_bytes(), password.as_bytes()),
        })
    }

    /// Returns the user's name.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether these are the name and the password.
    #[must_use]
    pub fn accept(&self, user: &[u8], password: &[u8]) -> bool {
        self.digest.ct_eq(&digest(user, password)).into()
    }
}

/// No pair has the digest of another: the name's length is part of it.
fn digest(user: &[u8], password: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update((user.len() as u64).to_be_bytes());
    digest.update(user);
    digest.update(password);
    digest.finalize().into()
}

impl FromStr for Credentials {
    type Err = CredentialsError;

    /// Reads `USER:PASSWORD`; white space around it is dropped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (user, password) = text
            .trim()
            .split_once(':')
            .ok_or(CredentialsError::Malformed)?;
        Self::new(user, password)
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.digest.ct_eq(&other.digest).into()
    }
}

impl Eq for Credentials {}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_pair_is_accepted() {
        let credentials: Credentials = " anna:se:cret\n".parse().unwrap();
        assert!(credentials.accept(b"anna", b"se:cret"));
        for (user, password) in [
            ("", ""),
            ("anna", "se:cre"),
            ("ann", "ase:cret"),
            ("anna:se", "cret"),
        ] {
            assert!(!credentials.accept(user.as_bytes(), password.as_bytes()));
        }
        assert!(!format!("{credentials:?}").contains("cret"));
        for wrong in ["", "anna", ":secret", "anna:"] {
            assert!(wrong.parse::<Credentials>().is_err());
        }
        assert_eq!(
            Credentials::new("a", &"b".repeat(256)),
            Err(CredentialsError::Password)
        );
    }
}
