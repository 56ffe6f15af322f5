//! Where the TLS of a server comes from.

use std::path::PathBuf;

use anyhow::{bail, ensure};
use tunnel::io::tls::authority::Authority;
use tunnel::io::tls::{ClientCertificates, Files};
use tunnel::io::{clock, tls};

use super::ServerOptions;
use crate::options::common::both;
use crate::options::state;

/// Where TLS of the front comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TlsSource {
    /// Files that are maintained elsewhere.
    Files(Files),
    /// An authority that the server makes and keeps.
    SelfSigned {
        folder: PathBuf,
        names: Vec<String>,
        client_ca: Option<PathBuf>,
        clients: ClientCertificates,
    },
}

impl TlsSource {
    /// Reads the files. The server's own authority makes those that are missing or due.
    pub(crate) fn load(&self) -> anyhow::Result<tls::Server> {
        let files = match self {
            Self::Files(files) => files.clone(),
            Self::SelfSigned {
                folder,
                names,
                client_ca,
                clients,
            } => {
                let authority = Authority::open(&folder.join("tls"), names, clock::wall())?;
                Files {
                    client_ca: client_ca.clone(),
                    clients: *clients,
                    ..authority.files()
                }
            }
        };
        let tls = tls::Server::load(&files)?;
        if let Some(warning) = tls.warning(clock::wall()) {
            tracing::warn!(file = %files.certificate.display(), "{warning}");
        }
        Ok(tls)
    }

    /// Returns the pin by which agents trust the certificate, unless they trust its authority
    /// anyway.
    pub(crate) fn pin(&self, tls: &tls::Server) -> Option<String> {
        match self {
            Self::Files(_) => None,
            // The last of the chain is the authority. It stays when the certificate is renewed.
            Self::SelfSigned { .. } => tls.pins().last().map(ToString::to_string),
        }
    }
}

impl ServerOptions {
    /// Returns where TLS comes from.
    pub(super) fn tls(&self, joins: bool) -> anyhow::Result<Option<TlsSource>> {
        let clients = match (&self.tls_client_ca, self.tls_clients) {
            (None, Some(_)) => {
                bail!("--tls-clients is about certificates of --tls-client-ca: set that too")
            }
            (_, clients) => clients.map(Into::into).unwrap_or_default(),
        };
        let self_signed = self.tls_self_signed;
        both(
            ("--tls-cert", "--tls-key"),
            (self.tls_cert.as_ref(), self.tls_key.as_ref()),
        )?;
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                ensure!(
                    self_signed != Some(true),
                    "--tls-self-signed makes what --tls-cert and --tls-key name: set one of the two"
                );
                Ok(Some(TlsSource::Files(Files {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    client_ca: self.tls_client_ca.clone(),
                    clients,
                })))
            }
            (None, None) if self_signed.unwrap_or(joins) => Ok(Some(TlsSource::SelfSigned {
                folder: state::folder(self.state_dir.as_deref())?,
                names: self.own_names(),
                client_ca: self.tls_client_ca.clone(),
                clients,
            })),
            (None, _) | (_, None) => {
                ensure!(
                    self.tls_client_ca.is_none(),
                    "--tls-client-ca is for a server with TLS: set --tls-cert and --tls-key, or \
                     --tls-self-signed"
                );
                Ok(None)
            }
        }
    }

    /// Returns under which names agents know this server.
    fn own_names(&self) -> Vec<String> {
        let mut names = vec![
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let listen = self.listen().ip();
        if !listen.is_unspecified() {
            names.push(listen.to_string());
        }
        names.extend(self.public_url.as_ref().map(|url| url.host().to_owned()));
        names
    }
}
