//! The identity of a client by its certificate.

use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The identity that TLS gives a client. The handshake has verified the certificate in it.
#[derive(Clone, Debug, Default)]
pub enum Identity {
    /// No certificate was required. The token alone authenticates the client.
    #[default]
    Unasked,
    /// There is no certificate, and agents and peers must present one.
    Missing,
    /// The client's certificate.
    Verified(CertificateDer<'static>),
}

impl Identity {
    /// Returns the DNS names of the client's certificate. Without one there are none.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Unasked | Self::Missing => Vec::new(),
            Self::Verified(certificate) => match EndEntityCert::try_from(certificate) {
                Ok(certificate) => certificate.valid_dns_names().map(str::to_owned).collect(),
                Err(_) => Vec::new(),
            },
        }
    }

    /// Checks that the client may be the agent or peer `name`. The name must equal one of the
    /// certificate's DNS names exactly, so that visitors are routed by the name that was certified.
    /// A wildcard matches no name.
    ///
    /// # Errors
    ///
    /// The reason, as it is sent to the client.
    pub fn allows(&self, name: &str) -> Result<(), &'static str> {
        match self {
            Self::Unasked => Ok(()),
            Self::Missing => Err("agents must show a client certificate to this server"),
            Self::Verified(_) if self.names().iter().any(|valid| valid == name) => Ok(()),
            Self::Verified(_) => {
                Err("the client certificate is not for this name: it must be one of its DNS names")
            }
        }
    }
}
