//! The server's side: its certificate, and which clients must present one.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls_pki_types::CertificateDer;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::io::clock;
use crate::io::socket::Socket;
use crate::io::tls::certificate::Validity;
use crate::io::tls::error::{Failure, TlsError};
use crate::io::tls::{ALPN, Identity, Pin, Transport, certificate, pem, provider, release};

/// The PEM files of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Its certificate, followed by its intermediates.
    pub certificate: PathBuf,
    /// The private key of the first certificate.
    pub key: PathBuf,
    /// The certificates of the authorities that sign clients (mutual TLS).
    pub client_ca: Option<PathBuf>,
    /// Which clients must present such a certificate. It has no effect without `client_ca`.
    pub clients: ClientCertificates,
}

/// Which clients must present a certificate. A certificate that is presented must be valid in any
/// case, and that of an agent or peer must have its name among its DNS names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// None.
    Optional,
    /// Agents and peers, but not visitors.
    Agents,
    /// All clients of the front, visitors included.
    #[default]
    Required,
}

/// TLS of a front. It is cheap to clone.
#[derive(Clone)]
pub struct Server {
    config: Arc<ServerConfig>,
    chain: Arc<[CertificateDer<'static>]>,
    validity: Validity,
    clients: Option<ClientCertificates>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("validity", &self.validity)
            .field("clients", &self.clients)
            .finish_non_exhaustive()
    }
}

/// A problem of a certificate that can be used nevertheless.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// It is not valid yet.
    #[error(
        "the certificate is not valid before {0}: clients will refuse it; is the clock of this machine right?"
    )]
    NotYetValid(String),
    /// It has expired.
    #[error("the certificate expired at {0}: clients refuse it; renew it")]
    Expired(String),
    /// It expires soon.
    #[error("the certificate expires at {0}, in less than two weeks: renew it")]
    ExpiresSoon(String),
}

/// How long before the end of a certificate's validity to warn.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// The first byte of a handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

const SPEAKS_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nServer: watertight\r\n\
    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 84\r\nConnection: close\r\n\r\n\
    watertight: this port speaks TLS: write https:// instead of http://, wss:// for ws:\n";

impl Server {
    /// Reads the files, and logs a [`Warning`] if there is one.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn load(files: &Files) -> Result<Self, TlsError> {
        let provider = provider();
        let pair = pem::pair(&files.certificate, &files.key, &provider)?;
        let named = files.certificate.display().to_string();
        let validity = pair.cert.first().and_then(|first| Validity::of(first));
        let Some(validity) = validity else {
            return Err(TlsError::Malformed {
                file: named,
                why: "it does not say when it is valid".to_owned(),
            });
        };
        let setup = |file: String, error: &dyn fmt::Display| TlsError::Setup {
            file,
            error: error.to_string(),
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(named.clone(), &error))?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let (roots, _) = pem::authorities(path)?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match files.clients {
                    ClientCertificates::Required => verifier,
                    ClientCertificates::Optional | ClientCertificates::Agents => {
                        verifier.allow_unauthenticated()
                    }
                };
                let verifier = verifier.build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| setup(path.display().to_string(), &error))?,
                )
            }
        };
        let chain = pair.cert.clone().into();
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        if files.client_ca.is_some() {
            // A resumed session would not be asked for its certificate again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        let server = Self {
            config: Arc::new(config),
            chain,
            validity,
            clients: files.client_ca.as_ref().map(|_| files.clients),
        };
        if let Some(warning) = server.warning(clock::wall()) {
            tracing::warn!(%warning, file = named, "TLS");
        }
        Ok(server)
    }

    /// Returns the validity of the certificate.
    #[must_use]
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// Returns the problem of the certificate at `now`, if there is one.
    #[must_use]
    pub fn warning(&self, now: SystemTime) -> Option<Warning> {
        let date = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            certificate::date(since.unwrap_or_default().as_secs())
        };
        let Validity {
            not_before,
            not_after,
        } = self.validity;
        if now < not_before {
            Some(Warning::NotYetValid(date(not_before)))
        } else if now > not_after {
            Some(Warning::Expired(date(not_after)))
        } else if now + SOON > not_after {
            Some(Warning::ExpiresSoon(date(not_after)))
        } else {
            None
        }
    }

    /// Returns the pin of each certificate that is presented, the server's first.
    #[must_use]
    pub fn pins(&self) -> Vec<Pin> {
        self.chain.iter().filter_map(Pin::of).collect()
    }

    /// Performs the handshake with a client. The caller sets the deadline.
    ///
    /// # Errors
    ///
    /// [`Failure`] says why it failed. The socket is released.
    pub async fn accept(&self, socket: Socket) -> Result<Transport, Failure> {
        match socket.peek().await {
            Ok(Some(HANDSHAKE)) => {}
            Ok(Some(b'A'..=b'Z')) => {
                refuse_http(socket).await;
                return Err(Failure::PlainHttp);
            }
            Ok(Some(_)) => return Err(Failure::NotTls),
            Ok(None) | Err(_) => return Err(Failure::Gone),
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config));
        match acceptor.accept(socket).into_fallible().await {
            Ok(stream) => Ok(Transport::Tls(Box::new(TlsStream::Server(stream)))),
            Err((error, socket)) => {
                // The client can then read the alert.
                release(socket).await;
                Err(Failure::of(&error))
            }
        }
    }

    /// Returns the identity of the client of `transport`.
    #[must_use]
    pub fn identity(&self, transport: &Transport) -> Identity {
        match (transport.certificate(), self.clients) {
            (Some(certificate), Some(_)) => Identity::Verified(certificate.clone()),
            (None, Some(ClientCertificates::Agents | ClientCertificates::Required)) => {
                Identity::Missing
            }
            (None, Some(ClientCertificates::Optional)) | (_, None) => Identity::Unasked,
        }
    }
}

async fn refuse_http(socket: Socket) {
    let mut rest = SPEAKS_TLS;
    while !rest.is_empty() {
        match socket.write(rest).await {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(_) => return,
        }
    }
    release(socket).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plain_http_is_as_long_as_it_says() {
        let text = std::str::from_utf8(SPEAKS_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
    }
}
