//! Trust in a key that was passed on separately, instead of in the system's authorities.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use crate::io::tls::certificate::Validity;

/// The SHA-256 of a certificate's key (its SubjectPublicKeyInfo) as in RFC 7469. As text it is
/// `sha256:` and 64 hexadecimal digits, or 43 characters of base64url.
///
/// A pin of an authority trusts the servers that it signs, by their names. A pin of a server's own
/// certificate trusts that server under any name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

/// Why a text is not a pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a pin: write sha256: and the SHA-256 of a certificate's public key, as 64 hexadecimal digits or 43 characters of base64url"
)]
pub struct PinError(String);

impl Pin {
    /// Returns the pin of a certificate, or `None` if it is malformed.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        Some(Self(
            Sha256::digest(parsed.subject_public_key_info()).into(),
        ))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digest = text.strip_prefix("sha256:").and_then(|digest| {
            let bytes = match digest.len() {
                64 => HEXLOWER_PERMISSIVE.decode(digest.as_bytes()),
                _ => BASE64URL_NOPAD.decode(digest.strip_suffix('=').unwrap_or(digest).as_bytes()),
            };
            bytes.ok()?.try_into().ok()
        });
        digest
            .map(Self)
            .ok_or_else(|| PinError(text.chars().take(100).collect()))
    }
}

/// No certificate of a chain has a pinned key.
#[derive(Debug, thiserror::Error)]
#[error("no certificate has the pinned key")]
pub(super) struct NotPinned;

/// Accepts servers by pins. If there are roots, a server must be valid by these as well.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) pins: Vec<Pin>,
    /// Certificates of authorities that a server need not present.
    pub(super) known: Vec<CertificateDer<'static>>,
    pub(super) roots: Option<Arc<WebPkiServerVerifier>>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn has(&self, certificate: &CertificateDer<'_>) -> bool {
        Pin::of(certificate).is_some_and(|pin| self.pins.contains(&pin))
    }

    /// Checks for a pinned key that is the server's, or that signs it directly or through
    /// intermediates.
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if self.has(end_entity) {
            return check_time(end_entity, now);
        }
        let server = ParsedCertificate::try_from(end_entity)?;
        let mut failure = CertificateError::Other(OtherError(Arc::new(NotPinned))).into();
        for authority in intermediates.iter().chain(&self.known) {
            if !self.has(authority) {
                continue;
            }
            let mut anchor = RootCertStore::empty();
            let checked = anchor
                .add(authority.clone().into_owned())
                .and_then(|()| {
                    verify_server_cert_signed_by_trust_anchor(
                        &server,
                        &anchor,
                        intermediates,
                        now,
                        self.algorithms.all,
                    )
                })
                .and_then(|()| check_time(authority, now))
                .and_then(|()| verify_server_name(&server, name));
            match checked {
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// Checks the validity of a trust anchor, which webpki does not.
fn check_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let Some(validity) = Validity::of(certificate) else {
        return Err(CertificateError::BadEncoding.into());
    };
    let seconds = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH);
        UnixTime::since_unix_epoch(since.unwrap_or_default())
    };
    let (not_before, not_after) = (seconds(validity.not_before), seconds(validity.not_after));
    let time = now;
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time, not_after }.into());
    }
    Ok(())
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        }
        self.check(end_entity, intermediates, server_name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_read_back_as_written_in_both_encodings() {
        let hex = format!("sha256:{}", "0f".repeat(32));
        let pin: Pin = hex.parse().unwrap();
        assert_eq!(pin.to_string(), hex);
        let base64 = format!("sha256:{}", BASE64URL_NOPAD.encode(&[0x0f; 32]));
        for same in [
            hex.to_uppercase().replace("SHA", "sha"),
            base64.clone(),
            base64 + "=",
        ] {
            assert_eq!(same.parse(), Ok(pin), "{same}");
        }
        for wrong in [
            String::new(),
            "0f".repeat(32),
            "sha256:".to_owned(),
            format!("sha256:{}", "0f".repeat(31)),
            format!("sha256:{}", "0g".repeat(32)),
            format!("sha1:{}", "0f".repeat(32)),
            format!("sha256:{}==", "0f".repeat(16)),
        ] {
            assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
        }
    }
}
