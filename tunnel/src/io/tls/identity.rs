//! Who a client is by its certificate.

use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

/// What TLS says of who connected. A certificate in here was verified by the handshake.
#[derive(Clone, Debug, Default)]
pub enum Identity {
    /// Nothing, and nothing need be said: its token decides.
    #[default]
    Unasked,
    /// Nothing, where agents and peers must show a certificate.
    Missing,
    /// Its certificate.
    Verified(CertificateDer<'static>),
}

impl Identity {
    /// Whether its holder may be the agent or peer `name`: the name must be one of the
    /// certificate's DNS names, letter for letter, so that the name by which visitors are routed is
    /// the one that was certified. A wildcard names nobody.
    ///
    /// # Errors
    ///
    /// Why not, as the holder is told.
    pub fn allows(&self, name: &str) -> Result<(), &'static str> {
        match self {
            Self::Unasked => Ok(()),
            Self::Missing => Err("agents must show a client certificate to this server"),
            Self::Verified(certificate) => {
                let has_name = EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
                    certificate.valid_dns_names().any(|valid| valid == name)
                });
                if has_name {
                    Ok(())
                } else {
                    Err(
                        "the client certificate is not for this name: it must be one of its DNS names",
                    )
                }
            }
        }
    }
}
