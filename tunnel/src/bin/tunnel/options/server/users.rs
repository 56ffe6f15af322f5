//! Who may log in at the public ports.

use std::env::VarError;

use anyhow::{Context as _, bail, ensure};
use tunnel::login::{User, UserRights, Users};
use tunnel::policy::Policy;

use super::ServerOptions;
use crate::options::secret;
use crate::options::value::Name;

impl ServerOptions {
    /// Returns the users.
    pub(super) fn users(&self) -> anyhow::Result<Users> {
        let mut users = Users::default();
        for (name, options) in self.users.iter().flatten() {
            let user = User {
                tokens: options.tokens.clone().unwrap_or_default(),
                password: None,
                rights: UserRights {
                    agents: options.agents.as_ref().map(|agents| {
                        let names = agents.iter().map(|Name(name)| name.clone());
                        names.collect()
                    }),
                    targets: options.targets.clone().map(Policy::new),
                },
            };
            ensure!(
                !user.tokens.is_empty() || self.tls_client_ca.is_some(),
                "[server.users.{name}] lets nobody in: give it tokens = [\"sha256:...\"], as \
                 `tunnel token` prints them, or set --tls-client-ca"
            );
            users
                .add(name, user)
                .with_context(|| format!("[server.users.{name:?}]"))?;
        }
        if let Some(twice) = self.proxy_credentials()?.and_then(|own| users.merge(own)) {
            bail!("the user {twice} of --proxy-credentials-file is in [server.users] too");
        }
        let asks = self.socks5.is_some()
            || self.http_connect.is_some()
            || self.http.is_some()
            || self.https.is_some();
        ensure!(
            asks || (self.users.is_none() && self.proxy_credentials_file.is_none()),
            "--proxy-credentials-file and [server.users] are for --socks5, --http-connect, --http \
             and --https: set one of them, or leave it away"
        );
        Ok(users)
    }

    /// Reads the user whom `--proxy-credentials-file` or the environment has.
    fn proxy_credentials(&self) -> anyhow::Result<Option<Users>> {
        const VARIABLE: &str = "TUNNEL_PROXY_CREDENTIALS";
        if let Some(file) = &self.proxy_credentials_file {
            return secret::user(file).map(Some);
        }
        match std::env::var(VARIABLE) {
            Ok(text) => Users::of_pair(&text)
                .map(Some)
                .with_context(|| format!("the credentials in {VARIABLE} are wrong")),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => bail!("{VARIABLE} is not UTF-8"),
        }
    }
}
