//! The token that authenticates this end to its server.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::io::files;
use crate::io::token::Token;
use crate::uplink::headers::LinkHeaders;

/// Holds the token. An invitation is exchanged for a token of its own at the first handshake.
#[derive(Debug)]
pub(crate) struct Keyring {
    token: Mutex<Token>,
    /// Whether the token is valid for more than one handshake.
    reusable: watch::Sender<bool>,
    /// What to try next if the server rejects the token.
    invitation: Mutex<Option<Token>>,
    file: Option<PathBuf>,
    headers: Mutex<LinkHeaders>,
}

impl Keyring {
    /// Creates a keyring with a lasting token.
    pub(crate) fn new(token: Token) -> Self {
        Self {
            token: Mutex::new(token),
            reusable: watch::Sender::new(true),
            invitation: Mutex::default(),
            file: None,
            headers: Mutex::default(),
        }
    }

    /// Creates a keyring with the token that an earlier run kept, if any, and an invitation. The
    /// invitation is used if there is no such token or the server rejects it.
    pub(crate) fn invited(invitation: Token, kept: Option<Token>, file: Option<PathBuf>) -> Self {
        let (token, reusable, left) = match kept {
            Some(kept) => (kept, true, Some(invitation)),
            None => (invitation, false, None),
        };
        Self {
            token: Mutex::new(token),
            reusable: watch::Sender::new(reusable),
            invitation: Mutex::new(left),
            file,
            headers: Mutex::default(),
        }
    }

    /// Takes note that the server rejected the token.
    pub(crate) fn refused(&self) {
        let left = lock(&self.invitation).take();
        if let Some(invitation) = left {
            *lock(&self.token) = invitation;
            self.reusable.send_replace(false);
        }
    }

    /// Replaces the token.
    pub(crate) fn replace(&self, token: Token) {
        *lock(&self.token) = token;
    }

    /// Replaces the further headers of the handshake.
    pub(crate) fn set_headers(&self, headers: LinkHeaders) {
        *lock(&self.headers) = headers;
    }

    /// Returns the further headers of the next handshake.
    pub(crate) fn headers(&self) -> LinkHeaders {
        lock(&self.headers).clone()
    }

    /// Returns the token for the next handshake.
    pub(crate) fn token(&self) -> Token {
        lock(&self.token).clone()
    }

    /// Waits until the token is valid for several links.
    pub(crate) async fn reusable(&self) {
        let mut reusable = self.reusable.subscribe();
        // The sender lives as long as `self`.
        let _ = reusable.wait_for(|reusable| *reusable).await;
    }

    /// Stores the token that the server gave in exchange for an invitation. It is ignored if none
    /// was used.
    pub(crate) fn take(&self, own: &str) {
        if *self.reusable.borrow() {
            return;
        }
        let Ok(token) = Token::new(own, "the server's answer") else {
            tracing::warn!("the server sent a malformed token; the invitation may be used up");
            return;
        };
        if let Some(file) = &self.file
            && let Err(error) =
                files::replace(file, format!("{}\n", token.expose()).as_bytes(), 0o600)
        {
            tracing::error!(
                file = %file.display(), %error,
                "cannot store the agent's token; after a restart it needs a new invitation"
            );
        }
        *lock(&self.token) = token;
        self.reusable.send_replace(true);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
