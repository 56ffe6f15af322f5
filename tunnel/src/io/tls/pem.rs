//! Certificates and keys in files.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use webpki::EndEntityCert;

use crate::io::tls::certificate::old_version;
use crate::io::tls::error::TlsError;

/// The largest file that is read, in bytes. The roots of a whole system take a quarter of it.
const FILE_MAX: u64 = 1024 * 1024;

/// Reads the certificates of a file in their order. There is at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = path.display().to_string();
    certificates_in(&read(path)?, file)
}

pub(super) fn certificates_in(
    pem: &[u8],
    file: String,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let malformed = |why: String| TlsError::Malformed {
        file: file.clone(),
        why,
    };
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| malformed("it is not PEM".to_owned()))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(file));
    }
    for certificate in &certificates {
        if let Some(version) = old_version(certificate) {
            return Err(TlsError::OldVersion { file, version });
        }
        EndEntityCert::try_from(certificate)
            .map_err(|error| malformed(format!("it is not an X.509 certificate: {error:?}")))?;
    }
    Ok(certificates)
}

/// Reads the private key of a file. Errors do not describe the content of the key.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| TlsError::NoKey(path.display().to_string()))
}

/// Reads a certificate chain and the private key of its first certificate.
pub(super) fn pair(
    certificate: &Path,
    key_file: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate)?;
    let loaded = provider
        .key_provider
        .load_private_key(key(key_file)?)
        .map_err(|_| TlsError::UnusableKey(key_file.display().to_string()))?;
    let pair = CertifiedKey::new(chain, loaded);
    pair.keys_match().map_err(|_| TlsError::KeyMismatch {
        certificate: certificate.display().to_string(),
        key: key_file.display().to_string(),
    })?;
    Ok(pair)
}

/// Reads the certificates of authorities.
pub(super) fn authorities(
    path: &Path,
) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let certificates = certificates(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|error| TlsError::Malformed {
                file: path.display().to_string(),
                why: error.to_string(),
            })?;
    }
    Ok((roots, certificates))
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |error| TlsError::Read {
        file: path.display().to_string(),
        error,
    };
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut content))
        .map_err(failed)?;
    if content.len() as u64 > FILE_MAX {
        return Err(TlsError::TooLarge(path.display().to_string()));
    }
    Ok(content)
}
