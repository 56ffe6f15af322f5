//! The secret by which this end is known to its server.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::io::files;
use crate::io::token::Token;

/// Holds the secret. One that is good only once is exchanged for one's own with the first handshake.
#[derive(Debug)]
pub(crate) struct Keyring {
    token: Mutex<Token>,
    /// Whether the secret is good for longer than one handshake.
    reusable: watch::Sender<bool>,
    /// What is left to try if the server does not know the secret.
    invitation: Mutex<Option<Token>>,
    file: Option<PathBuf>,
}

impl Keyring {
    /// Holds a secret that stays.
    pub(crate) fn new(token: Token) -> Self {
        Self {
            token: Mutex::new(token),
            reusable: watch::Sender::new(true),
            invitation: Mutex::default(),
            file: None,
        }
    }

    /// Holds what an earlier run was given in exchange for its invitation, and an invitation in case the server does not know that
    /// any longer, or there was none.
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
        }
    }

    /// The server does not know the secret.
    pub(crate) fn refused(&self) {
        let left = lock(&self.invitation).take();
        if let Some(invitation) = left {
            *lock(&self.token) = invitation;
            self.reusable.send_replace(false);
        }
    }

    /// Holds another secret from now on.
    pub(crate) fn replace(&self, token: Token) {
        *lock(&self.token) = token;
    }

    /// Returns the secret for the next handshake.
    pub(crate) fn token(&self) -> Token {
        lock(&self.token).clone()
    }

    /// Waits until the secret is good for several links.
    pub(crate) async fn reusable(&self) {
        let mut reusable = self.reusable.subscribe();
        // The sender lives as long as `self`.
        let _ = reusable.wait_for(|reusable| *reusable).await;
    }

    /// Takes the secret that the server gave in exchange. One that nobody asked for is ignored.
    pub(crate) fn take(&self, own: &str) {
        if *self.reusable.borrow() {
            return;
        }
        let Ok(token) = Token::new(own, "the server's answer") else {
            tracing::warn!("the server gave a token that is none; the invitation may be lost");
            return;
        };
        if let Some(file) = &self.file
            && let Err(error) =
                files::replace(file, format!("{}\n", token.expose()).as_bytes(), 0o600)
        {
            tracing::error!(
                file = %file.display(), %error,
                "cannot keep the agent's token: after a restart it needs another invitation"
            );
        }
        *lock(&self.token) = token;
        self.reusable.send_replace(true);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
