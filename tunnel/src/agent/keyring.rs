//! The secret by which this end is known to its server.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::server::roster::replace_file;
use crate::token::Token;

/// Holds the secret. One that is good only once is exchanged for one's own with the first handshake.
#[derive(Debug)]
pub(crate) struct Keyring {
    token: Mutex<Token>,
    /// Whether the secret is good for longer than one handshake.
    lasting: watch::Sender<bool>,
    file: Option<PathBuf>,
}

impl Keyring {
    /// Holds a secret that stays.
    pub(crate) fn new(token: Token) -> Self {
        Self {
            token: Mutex::new(token),
            lasting: watch::Sender::new(true),
            file: None,
        }
    }

    /// Holds a secret that is good once. The next one is written to `file` for later runs.
    pub(crate) fn once(token: Token, file: Option<PathBuf>) -> Self {
        Self {
            token: Mutex::new(token),
            lasting: watch::Sender::new(false),
            file,
        }
    }

    /// Returns the secret for the next handshake.
    pub(crate) fn token(&self) -> Token {
        self.lock().clone()
    }

    /// Waits until the secret is good for several links.
    pub(crate) async fn lasting(&self) {
        let mut lasting = self.lasting.subscribe();
        // The sender lives as long as `self`.
        let _ = lasting.wait_for(|lasting| *lasting).await;
    }

    /// Takes the secret that the server gave in exchange. One that nobody asked for is ignored.
    pub(crate) fn take(&self, own: &str) {
        if *self.lasting.borrow() {
            return;
        }
        let Ok(token) = Token::new(own, "the server's answer") else {
            tracing::warn!("the server gave a token that is none; the invitation may be lost");
            return;
        };
        if let Some(file) = &self.file
            && let Err(error) = replace_file(file, format!("{}\n", token.expose()).as_bytes())
        {
            tracing::error!(
                file = %file.display(), %error,
                "cannot keep the agent's token: after a restart it needs another invitation"
            );
        }
        *self.lock() = token;
        self.lasting.send_replace(true);
    }

    fn lock(&self) -> MutexGuard<'_, Token> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
