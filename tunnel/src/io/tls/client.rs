//! The agent's side: which servers it trusts, and which certificate it presents.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::io::socket::Socket;
use crate::io::tls::error::{HandshakeError, TlsError};
use crate::io::tls::pin::{Pin, Pinned};
use crate::io::tls::{ALPN, Transport, pem, provider, release};

/// How a server is verified, and which certificate this end presents. By default the system's
/// authorities are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// A PEM file with the certificates of the authorities that are trusted instead of the
    /// system's.
    pub ca_file: Option<PathBuf>,
    /// The pinned keys. One of them must be the server's or that of an authority which signed it.
    /// Without `ca_file` nothing else is trusted. With it the server must pass both checks. Several
    /// pins allow a rotation.
    pub pins: Vec<Pin>,
    /// A PEM file with the certificate that is presented to a server that asks for one, followed by
    /// its intermediates.
    pub certificate: Option<PathBuf>,
    /// A PEM file with its private key.
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must have instead of the host in the server's URL.
    pub server_name: Option<String>,
}

/// TLS for connections to servers. The files are read for each connection, so a renewed one applies
/// from the next connection. The system's authorities are read once.
#[derive(Clone, Debug, Default)]
pub struct Client {
    files: Arc<ClientFiles>,
    native: Arc<OnceLock<Arc<RootCertStore>>>,
}

impl Client {
    /// Checks that the files can be used now.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn load(files: ClientFiles) -> Result<Self, TlsError> {
        if let Some(name) = &files.server_name {
            server_name(name)?;
        }
        let client = Self {
            files: Arc::new(files),
            native: Arc::default(),
        };
        client.config()?;
        Ok(client)
    }

    /// Performs the handshake with the server `host` over `socket`. The caller sets the deadline.
    ///
    /// # Errors
    ///
    /// [`ClientError`] says what is wrong with the files, or with the server.
    pub async fn connect(&self, host: &str, socket: Socket) -> Result<Transport, ClientError> {
        let name = server_name(self.files.server_name.as_deref().unwrap_or(host))?;
        let connector = TlsConnector::from(Arc::new(self.config()?));
        match connector.connect(name, socket).into_fallible().await {
            Ok(stream) => Ok(Transport::Tls(Box::new(TlsStream::Client(stream)))),
            Err((error, socket)) => {
                // The server can then read the alert.
                release(socket).await;
                Err(HandshakeError::of(error).into())
            }
        }
    }

    fn config(&self) -> Result<ClientConfig, TlsError> {
        let files = &*self.files;
        let provider = provider();
        let (roots, known) = match &files.ca_file {
            Some(path) => {
                let (roots, certificates) = pem::authorities(path)?;
                (Some(Arc::new(roots)), certificates)
            }
            None if files.pins.is_empty() => (Some(self.native()?), Vec::new()),
            None => (None, Vec::new()),
        };
        let named = || match &files.ca_file {
            Some(path) => path.display().to_string(),
            None => "the authorities of this system".to_owned(),
        };
        let setup = |file: String, error: &dyn std::fmt::Display| TlsError::Setup {
            file,
            error: error.to_string(),
        };
        let roots = match roots {
            Some(roots) => Some(
                WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                    .build()
                    .map_err(|error| setup(named(), &error))?,
            ),
            None => None,
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(named(), &error))?;
        let builder = match roots {
            Some(roots) if files.pins.is_empty() => builder.with_webpki_verifier(roots),
            roots => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Pinned {
                    pins: files.pins.clone(),
                    known,
                    roots,
                    algorithms: provider.signature_verification_algorithms,
                })),
        };
        let mut config = match (&files.certificate, &files.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate), Some(key)) => {
                let chain = pem::pair(certificate, key, &provider)?.cert;
                builder
                    .with_client_auth_cert(chain, pem::key(key)?)
                    .map_err(|error| setup(certificate.display().to_string(), &error))?
            }
            (Some(_), None) | (None, Some(_)) => return Err(TlsError::HalfIdentity),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No resumption: each link is verified, and links are rare.
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn native(&self) -> Result<Arc<RootCertStore>, TlsError> {
        if let Some(roots) = self.native.get() {
            return Ok(Arc::clone(roots));
        }
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "a root certificate of the system cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(TlsError::NoRoots);
        }
        Ok(Arc::clone(self.native.get_or_init(|| Arc::new(roots))))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))
}

/// Why a connection to a server has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The files of this end cannot be used.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}
