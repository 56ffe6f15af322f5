//! Reads what webpki does not show of a certificate: its validity, and all its names.
//!
//! Trust depends on both: a pinned key is refused outside of its certificate's validity, and an
//! authority renews a server's certificate by its validity and names. Signatures and chains are
//! left to webpki.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate, X509Version};
use x509_parser::time::ASN1Time;

/// The validity of a certificate (RFC 5280, section 4.1.2.5), to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub not_before: SystemTime,
    /// Its last second.
    pub not_after: SystemTime,
}

impl Validity {
    /// Reads the validity of a certificate. Returns `None` if the certificate is malformed.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let certificate = parse(certificate)?;
        let validity = certificate.validity();
        Some(Self {
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
        })
    }
}

/// Returns the version of a certificate if it is older than version 3.
pub(super) fn old_version(certificate: &[u8]) -> Option<String> {
    let version = parse(certificate)?.version();
    (version != X509Version::V3).then(|| format!("version {}", version.0.saturating_add(1)))
}

/// Returns the DNS names, in lower case, and the addresses of a certificate, or `None` if it is
/// malformed.
pub(super) fn names(certificate: &[u8]) -> Option<BTreeSet<String>> {
    let certificate = parse(certificate)?;
    let Some(names) = certificate.subject_alternative_name().ok()? else {
        return Some(BTreeSet::new());
    };
    let names = names.value.general_names.iter();
    Some(names.filter_map(name).collect())
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn parse(certificate: &[u8]) -> Option<X509Certificate<'_>> {
    let (rest, certificate) = X509Certificate::from_der(certificate).ok()?;
    rest.is_empty().then_some(certificate)
}

/// Years before 1970 count as 1970.
fn time(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
}

/// Formats a time as logs do.
pub(super) fn date(seconds: u64) -> String {
    // The last second that has four digits for its year: `date -u -d 9999-12-31T23:59:59 +%s`.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str], not_before: u64, not_after: u64) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = (UNIX_EPOCH + Duration::from_secs(not_before)).into();
        params.not_after = (UNIX_EPOCH + Duration::from_secs(not_after)).into();
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn dates_and_names_are_read() {
        // As `date -u -d 2049-12-31T23:59:59 +%s` says, and a second later: another encoding.
        for (before, after) in [
            (0, 951_782_400),
            (1_709_164_800, 2_524_607_999),
            (1, 2_524_608_000),
        ] {
            let der = certificate(&["A.example", "*.b", "10.0.0.1", "::1"], before, after);
            let validity = Validity::of(&der).unwrap();
            let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert_eq!(
                (seconds(validity.not_before), seconds(validity.not_after)),
                (before, after)
            );
            let names = names(&der).unwrap();
            assert_eq!(
                Vec::from_iter(names),
                ["*.b", "10.0.0.1", "::1", "a.example"]
            );
        }
        assert_eq!(names(&certificate(&[], 0, 1)), Some(BTreeSet::new()));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (u64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn nothing_malformed_is_read_and_nothing_panics() {
        let der = certificate(&["a.example"], 0, 1);
        for length in 0..der.len() {
            assert!(Validity::of(&der[..length]).is_none());
        }
        for at in 0..der.len() {
            for value in [0, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = der.clone();
                changed[at] = value;
                let _ = (Validity::of(&changed), names(&changed));
            }
        }
        let more = [der.as_slice(), &[0]].concat();
        assert!(Validity::of(&more).is_none() && names(&more).is_none());
    }
}
