//! The errors of TLS, each with advice.

use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage};
use rustls_pki_types::UnixTime;

use crate::io::tls::pin::NotPinned;

/// Why TLS cannot be set up from files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {file}: {error}")]
    Read {
        /// The file.
        file: String,
        /// What the system says.
        error: io::Error,
    },
    /// A file is too large to be what it should be.
    #[error("{0} has more than 1 MiB: it is not a file of certificates or a key")]
    TooLarge(String),
    /// A file has no certificate.
    #[error(
        "{0} has no certificate in it: it must be PEM text, with -----BEGIN CERTIFICATE----- in it"
    )]
    NoCertificate(String),
    /// A file is not PEM, or its content is not a certificate.
    #[error("{file} has a certificate that cannot be read: {why}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A certificate is of an old version.
    #[error("a certificate in {file} is of {version}: {OLD_VERSION}")]
    OldVersion {
        /// The file.
        file: String,
        /// Which version.
        version: String,
    },
    /// A file has no key.
    #[error(
        "{0} has no private key in it: it must be PEM text, with -----BEGIN PRIVATE KEY----- in it (or EC or RSA PRIVATE KEY), and not encrypted"
    )]
    NoKey(String),
    /// The key cannot be used.
    #[error(
        "the private key in {0} cannot be used: take one for ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more"
    )]
    UnusableKey(String),
    /// Key and certificate do not match.
    #[error("the private key in {key} does not belong to the first certificate in {certificate}")]
    KeyMismatch {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
    },
    /// A certificate was given without its key, or a key without its certificate.
    #[error("a client certificate and its key go together: one of the two files is missing")]
    HalfIdentity,
    /// The server's name is malformed.
    #[error("{0:?} is neither a host's name nor an address, so no certificate can be for it")]
    ServerName(String),
    /// The system has no root certificates.
    #[error(
        "this system has no root certificates: install its package ca-certificates, or give --ca-file or the pin of the server's join line"
    )]
    NoRoots,
    /// rustls rejects the configuration.
    #[error("TLS cannot be set up with {file}: {error}")]
    Setup {
        /// The file.
        file: String,
        /// What rustls says.
        error: String,
    },
}

/// Why there is no TLS with a server.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The certificate has expired.
    #[error(
        "the server's certificate expired at {0}: renew it there, or set the clock of this machine"
    )]
    Expired(String),
    /// The certificate is not valid yet.
    #[error(
        "the server's certificate is not valid before {0}: is the clock of this machine right?"
    )]
    NotYetValid(String),
    /// The certificate is for other names.
    #[error(
        "the server's certificate is not for {wanted} but for {presented}: write one of its names into the server's URL, or give it as --server-name"
    )]
    WrongName {
        /// The expected name.
        wanted: String,
        /// The names in the certificate.
        presented: String,
    },
    /// The certificate's issuer is not trusted.
    #[error(
        "the server's certificate is signed by nobody that is known here: give the certificate of its authority as --ca-file, or the pin of the server's join line"
    )]
    UnknownIssuer,
    /// No certificate has a pinned key.
    #[error(
        "no certificate of the server has the pinned key, so this may be another server: take the pin from its join line anew"
    )]
    NotPinned,
    /// The certificate is invalid in another way.
    #[error("the server's certificate is not accepted: {0}")]
    Certificate(String),
    /// The server requires a client certificate, or a different one.
    #[error(
        "the server does not accept who we are ({0}): give a client certificate that its --client-ca signed, and its key"
    )]
    ClientCertificate(String),
    /// The other end does not speak TLS.
    #[error("the server does not speak TLS here: write ws:// instead of wss://, or another port")]
    NotTls,
    /// Both ends have no version or cipher in common.
    #[error("the server speaks no TLS that is good enough, which is 1.2 or 1.3: {0}")]
    Incompatible(String),
    /// The connection broke.
    #[error("the connection ended in the TLS handshake: {0}")]
    Io(io::Error),
    /// Anything else.
    #[error("the TLS handshake failed: {0}")]
    Protocol(String),
}

impl HandshakeError {
    /// Extracts the error of rustls from an I/O error.
    #[must_use]
    pub fn of(error: io::Error) -> Self {
        match tls_error(&error) {
            Some(inner) => Self::of_tls(inner),
            None => Self::Io(error),
        }
    }

    /// Whether an I/O error comes from TLS.
    #[must_use]
    pub fn is_in(error: &io::Error) -> bool {
        tls_error(error).is_some()
    }

    fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => Self::of_certificate(error),
            rustls::Error::AlertReceived(alert) if concerns_certificate(*alert) => {
                Self::ClientCertificate(format!("{alert:?}"))
            }
            rustls::Error::AlertReceived(
                AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
            )
            | rustls::Error::PeerIncompatible(_) => Self::Incompatible(error.to_string()),
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge,
            ) => Self::NotTls,
            other => Self::Protocol(other.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired => Self::Expired("some time ago".to_owned()),
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired(date(*not_after)),
            CertificateError::NotValidYet => Self::NotYetValid("some time to come".to_owned()),
            CertificateError::NotValidYetContext { not_before, .. } => {
                Self::NotYetValid(date(*not_before))
            }
            CertificateError::NotValidForName => Self::WrongName {
                wanted: "this server".to_owned(),
                presented: "others".to_owned(),
            },
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => Self::WrongName {
                wanted: expected.to_str().into_owned(),
                presented: match presented.get(..NAMES_TOLD) {
                    Some(first) => format!("{first:?} and others"),
                    None => format!("{presented:?}"),
                },
            },
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::Other(other) if other.0.is::<NotPinned>() => Self::NotPinned,
            CertificateError::Other(other)
                if matches!(
                    other.0.downcast_ref(),
                    Some(webpki::Error::CaUsedAsEndEntity)
                ) =>
            {
                let why = "it is that of an authority (CA:TRUE), which no server may use as its own; make one without, or pin it";
                Self::Certificate(why.to_owned())
            }
            CertificateError::Other(other) if is_of_old_version(other) => {
                Self::Certificate(format!("it is of version 1: {OLD_VERSION}"))
            }
            other => Self::Certificate(other.to_string()),
        }
    }

    /// Returns the reason that is counted.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Expired(_)
            | Self::NotYetValid(_)
            | Self::WrongName { .. }
            | Self::UnknownIssuer
            | Self::NotPinned
            | Self::Certificate(_) => "certificate",
            Self::ClientCertificate(_) => "client certificate",
            Self::NotTls | Self::Incompatible(_) | Self::Io(_) | Self::Protocol(_) => "tls",
        }
    }
}

/// What to do about a certificate of version 1 or 2 (RFC 5280, section 4.1.2.1).
const OLD_VERSION: &str = "only version 3 has the names that it is checked for; make it anew with \
                           extensions, as openssl does with -addext subjectAltName=DNS:NAME";

fn is_of_old_version(error: &rustls::OtherError) -> bool {
    let error = error.0.downcast_ref();
    matches!(error, Some(webpki::Error::UnsupportedCertVersion))
}

/// The most names of a certificate that an error lists. A certificate may have thousands.
const NAMES_TOLD: usize = 8;

fn date(time: UnixTime) -> String {
    crate::io::tls::certificate::date(time.as_secs())
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether `alert` means that the other end rejects a certificate or misses one.
const fn concerns_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::CertificateRequired
    )
}

/// Why the handshake of a connection to the front failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It speaks HTTP without TLS.
    #[error("it speaks HTTP without TLS")]
    PlainHttp,
    /// It does not speak TLS.
    #[error("what it sent is not TLS")]
    NotTls,
    /// It did not finish in time.
    #[error("it did not finish its handshake in time")]
    TimedOut,
    /// It closed the connection.
    #[error("it went away")]
    Gone,
    /// It has no certificate, or an invalid one.
    #[error("its certificate is missing or wrong: {0}")]
    ClientCertificate(String),
    /// It rejects the server's certificate.
    #[error("it does not accept the certificate of this server: {0}")]
    Distrusted(String),
    /// It supports no version, cipher or protocol of this server.
    #[error("it has no version, cipher or protocol in common with this server: {0}")]
    Incompatible(String),
    /// It violates the TLS protocol.
    #[error("it breaks the rules of TLS: {0}")]
    Protocol(String),
}

impl Failure {
    /// All reasons that are counted.
    pub(crate) const REASONS: [&str; 8] = [
        "plain http",
        "not tls",
        "timed out",
        "gone",
        "client certificate",
        "distrusted",
        "incompatible",
        "protocol",
    ];

    /// Returns the reason that is counted.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::PlainHttp => "plain http",
            Self::NotTls => "not tls",
            Self::TimedOut => "timed out",
            Self::Gone => "gone",
            Self::ClientCertificate(_) => "client certificate",
            Self::Distrusted(_) => "distrusted",
            Self::Incompatible(_) => "incompatible",
            Self::Protocol(_) => "protocol",
        }
    }

    pub(super) fn of(error: &io::Error) -> Self {
        let Some(inner) = tls_error(error) else {
            return Self::Gone;
        };
        let told = inner.to_string();
        match inner {
            rustls::Error::InvalidCertificate(CertificateError::Other(other))
                if is_of_old_version(other) =>
            {
                Self::ClientCertificate(format!("it is of version 1: {OLD_VERSION}"))
            }
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                Self::ClientCertificate(told)
            }
            rustls::Error::AlertReceived(alert) if concerns_certificate(*alert) => {
                Self::Distrusted(told)
            }
            rustls::Error::PeerIncompatible(_)
            | rustls::Error::NoApplicationProtocol
            | rustls::Error::AlertReceived(
                AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
            ) => Self::Incompatible(told),
            rustls::Error::AlertReceived(AlertDescription::CloseNotify) => Self::Gone,
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
                | InvalidMessage::InvalidEmptyPayload,
            ) => Self::NotTls,
            _ => Self::Protocol(told),
        }
    }
}
