//! An authority of the server's own, for a server without a certificate.
//!
//! A directory holds `ca.pem` and `ca.key`, which are made once, and `server.pem` and `server.key`,
//! which are renewed before they expire and when the server's names change. The authority's [`Pin`]
//! depends on `ca.key` only. Agents need nothing else. `server.pem` includes the authority's
//! certificate, so that the server presents the pinned key.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::io::tls::certificate::Validity;
use crate::io::tls::error::TlsError;
use crate::io::tls::{ClientCertificates, Files, Pin, certificate, pem, provider};

mod files;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long an authority is valid.
pub const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3650);

/// An authority whose certificate expires sooner than this gets a new one for its old key. Its pin
/// stays the same.
pub const AUTHORITY_REST: Duration = DAY.saturating_mul(365);

/// How long a server's certificate is valid. It is renewed when a third of this is left.
pub const SERVER_LIFE: Duration = DAY.saturating_mul(90);

/// Certificates become valid this long before they are made, for clocks that are slow.
const SLOW_CLOCKS: Duration = Duration::from_secs(3600);

/// The subject of the authority, which links a certificate to its issuer. Trust depends on the key.
const AUTHORITY_NAME: &str = "Watertight tunnel authority";

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const SERVER: &str = "server.pem";
const SERVER_KEY: &str = "server.key";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The server has no name.
    #[error("a certificate must be for a name or an address by which agents reach the server")]
    NoNames,
    /// A name is malformed.
    #[error("{0:?} is neither a host's name nor an address, so no certificate can be for it")]
    Name(String),
    /// The directory or a file in it cannot be read or written.
    #[error("cannot {what} {path}: {error}")]
    File {
        /// The operation.
        what: &'static str,
        /// Its file or directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The authority's certificate exists and its key does not. A new key would break every pin
    /// that was given to agents.
    #[error(
        "{0} is missing, but its certificate ca.pem is there: put the key back, or remove ca.pem too and give all agents the pin of the new authority"
    )]
    NoKey(PathBuf),
    /// Other users can read the key.
    #[error("{0} can be read by others, who could pass for this server: chmod 600 it")]
    Exposed(PathBuf),
    /// A file in the directory is not one that an authority makes.
    #[error(
        "{path} is not what this program made there ({why}): use certificates of your own with --tls-cert and --tls-key, or another directory"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Keys or certificates cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// An authority and the certificate of one server, in a directory.
#[derive(Clone, Debug)]
pub struct Authority {
    directory: PathBuf,
    names: BTreeSet<String>,
    pin: Pin,
}

impl Authority {
    /// Opens the authority in `directory` and makes the files that are missing or due for renewal
    /// at `now`. The server's certificate is for `names`, which are host names and IP addresses.
    /// Only the owner of a new directory can use it. Waits for another process that does the same.
    ///
    /// # Errors
    ///
    /// [`AuthorityError`] names the file and what is wrong with it.
    pub fn open(
        directory: &Path,
        names: &[String],
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        if names.is_empty() {
            return Err(AuthorityError::NoNames);
        }
        let names = names.iter().map(|name| canonical(name));
        let names = names.collect::<Result<BTreeSet<_>, _>>()?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("make", directory))?;
        let _lock = lock(directory)?;
        let ca = open_ca(directory, now)?;
        let pin = ca.pin;
        let authority = Self {
            directory: directory.to_owned(),
            names,
            pin,
        };
        authority.renew_by(&ca, now)?;
        Ok(authority)
    }

    /// Renews the server's certificate if that is due at `now`, and returns whether it was.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn renew(&self, now: SystemTime) -> Result<bool, AuthorityError> {
        let _lock = lock(&self.directory)?;
        self.renew_by(&open_ca(&self.directory, now)?, now)
    }

    /// Returns the pin by which agents trust the server.
    #[must_use]
    pub const fn pin(&self) -> Pin {
        self.pin
    }

    /// Returns the file with the authority's certificate, for clients that read PEM files.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.directory.join(CA)
    }

    /// Returns the files of the server.
    #[must_use]
    pub fn files(&self) -> Files {
        Files {
            certificate: self.directory.join(SERVER),
            key: self.directory.join(SERVER_KEY),
            client_ca: None,
            clients: ClientCertificates::default(),
        }
    }

    fn renew_by(&self, ca: &Ca, now: SystemTime) -> Result<bool, AuthorityError> {
        if self.is_good(ca, now) {
            return Ok(false);
        }
        let made = make_server(ca, &self.names, now)?;
        // The key first: until the certificate follows, the pair does not match and is not used.
        files::write(&self.directory.join(SERVER_KEY), &made.key_pem, 0o600)?;
        let chain = made.certificate_pem + &ca.certificate_pem;
        files::write(&self.directory.join(SERVER), &chain, 0o644)?;
        Ok(true)
    }

    fn is_good(&self, ca: &Ca, now: SystemTime) -> bool {
        let files = self.files();
        pem::pair(&files.certificate, &files.key, &provider()).is_ok_and(|pair| {
            let [server, authority] = pair.cert.as_slice() else {
                return false;
            };
            *authority == ca.certificate && !is_due(server, ca, &self.names, now)
        })
    }
}

/// An authority with its key.
struct Ca {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    pin: Pin,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key as PEM.
struct Made {
    certificate_pem: String,
    key_pem: String,
}

fn open_ca(directory: &Path, now: SystemTime) -> Result<Ca, AuthorityError> {
    let (path, key_path) = (directory.join(CA), directory.join(CA_KEY));
    let certificate_pem = files::read(&path)?;
    let Some(key_pem) = files::read(&key_path)? else {
        if certificate_pem.is_some() {
            return Err(AuthorityError::NoKey(key_path));
        }
        let key = KeyPair::generate()?;
        files::create(&key_path, &key.serialize_pem(), 0o600)?;
        return write_ca(directory, key, now);
    };
    let metadata = std::fs::metadata(&key_path).map_err(failed("look at", &key_path))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(AuthorityError::Exposed(key_path));
    }
    // Errors do not describe the content of a key.
    let key = KeyPair::from_pem(&key_pem).map_err(|_| AuthorityError::Foreign {
        path: key_path,
        why: "it is not a private key".to_owned(),
    })?;
    // A certificate for the existing key keeps the pin.
    let Some(certificate_pem) = certificate_pem else {
        return write_ca(directory, key, now);
    };
    let foreign = |why: String| AuthorityError::Foreign {
        path: path.clone(),
        why,
    };
    let certificates = pem::certificates_in(certificate_pem.as_bytes(), CA.to_owned())
        .map_err(|error: TlsError| foreign(error.to_string()))?;
    let [certificate] = certificates.as_slice() else {
        return Err(foreign("it has several certificates".to_owned()));
    };
    let validity = Validity::of(certificate)
        .ok_or_else(|| foreign("it does not say when it is valid".to_owned()))?;
    if now + AUTHORITY_REST > validity.not_after {
        return write_ca(directory, key, now);
    }
    take_ca(certificate.clone(), certificate_pem, key).map_err(|why| foreign(why.to_owned()))
}

fn write_ca(directory: &Path, key: KeyPair, now: SystemTime) -> Result<Ca, AuthorityError> {
    let (path, certificate) = (directory.join(CA), ca_params(now).self_signed(&key)?);
    files::write(&path, &certificate.pem(), 0o644)?;
    take_ca(certificate.der().clone(), certificate.pem(), key).map_err(|why| {
        AuthorityError::Foreign {
            path,
            why: why.to_owned(),
        }
    })
}

fn take_ca(
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
) -> Result<Ca, &'static str> {
    let parsed = ParsedCertificate::try_from(&certificate).map_err(|_| "it is malformed")?;
    let is_its =
        *parsed.subject_public_key_info() == *rcgen::PublicKeyData::subject_public_key_info(&key);
    if !is_its {
        return Err("ca.key is the key of another one");
    }
    let ca = Ca {
        pin: Pin::of(&certificate).ok_or("it is malformed")?,
        issuer: Issuer::new(ca_params(SystemTime::UNIX_EPOCH), key),
        certificate,
        certificate_pem,
    };
    Ok(ca)
}

fn ca_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(AUTHORITY_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, now, AUTHORITY_LIFE);
    params
}

fn make_server(ca: &Ca, names: &BTreeSet<String>, now: SystemTime) -> Result<Made, AuthorityError> {
    let mut params = CertificateParams::new(Vec::from_iter(names.iter().cloned()))?;
    params.distinguished_name = named("Watertight tunnel server");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_life(&mut params, now, SERVER_LIFE);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &ca.issuer)?;
    if is_due(certificate.der(), ca, names, now) {
        return Err(AuthorityError::Foreign {
            path: PathBuf::from(CA),
            why: "what its key signs is not accepted by it".to_owned(),
        });
    }
    Ok(Made {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
    })
}

/// Whether a server's certificate must be renewed: it expires soon, or its names or its authority
/// have changed.
fn is_due(
    certificate: &CertificateDer<'_>,
    ca: &Ca,
    names: &BTreeSet<String>,
    now: SystemTime,
) -> bool {
    let lasts = Validity::of(certificate)
        .is_some_and(|validity| now + SERVER_LIFE / 3 <= validity.not_after);
    let is_for_names = certificate::names(certificate).is_some_and(|found| found == *names);
    !lasts || !is_for_names || !is_signed(certificate, ca, now)
}

fn is_signed(certificate: &CertificateDer<'_>, ca: &Ca, now: SystemTime) -> bool {
    let mut roots = RootCertStore::empty();
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    ParsedCertificate::try_from(certificate)
        .and_then(|certificate| {
            roots.add(ca.certificate.clone())?;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &roots,
                &[],
                UnixTime::since_unix_epoch(since.unwrap_or_default()),
                provider().signature_verification_algorithms.all,
            )
        })
        .is_ok()
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_life(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let begin = now
        .checked_sub(SLOW_CLOCKS)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    params.not_before = begin.max(SystemTime::UNIX_EPOCH).into();
    params.not_after = (now + life).into();
}

/// Returns a name in the form that certificates use.
fn canonical(name: &str) -> Result<String, AuthorityError> {
    match ServerName::try_from(name) {
        Ok(ServerName::DnsName(name)) => Ok(name.as_ref().to_ascii_lowercase()),
        Ok(ServerName::IpAddress(address)) => Ok(std::net::IpAddr::from(address).to_string()),
        Ok(_) | Err(_) => Err(AuthorityError::Name(name.to_owned())),
    }
}

/// Lets one process in at a time. Dropping what is returned releases the lock.
fn lock(directory: &Path) -> Result<File, AuthorityError> {
    let file = File::open(directory).map_err(failed("open", directory))?;
    file.lock().map_err(failed("lock", directory))?;
    Ok(file)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |error| AuthorityError::File { what, path, error }
}

#[cfg(test)]
mod tests;
